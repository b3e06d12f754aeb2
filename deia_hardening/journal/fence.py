"""After a failed sync: the file is closed for every process, and a new segment goes on with what it held.

The kernel may have dropped the pages that it could not write and will call the next fdatasync a success, so a
sync is never retried. The live file is renamed first (every process then finds it gone), the lines after its last
acknowledged one are written byte for byte into a new live file and synced there, and only then is the old file
cut at that line and sealed. Each step can be taken up by any process, or by the next start.
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH104, PTH208
from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from deia_hardening.journal.disk import read_range, save_aside, sync_folder, write_new
from deia_hardening.journal.errors import JournalError
from deia_hardening.journal.lines import LONGEST_HEADER, LONGEST_LINE, leaf_hex, make_header, parse_header, parse_prefix
from deia_hardening.journal.segments import sealed_name
from deia_hardening.journal.tail import examine

_FENCED = re.compile(r"\.fenced\.(\d+)")


def beside(path: Path) -> Path:
    """The next live file while it is being made."""
    return path.with_name(path.name + ".new")


def free_name(path: Path, kind: str, stamp: str) -> Path:
    """A name beside `path` that nothing has yet."""
    for number in range(10_000):
        target = path.with_name(f"{path.name}.{kind}-{stamp}-{number}")
        if not os.path.lexists(target):
            return target
    raise FileExistsError(f"too many files set aside beside {path}")


def find(path: Path) -> tuple[Path, int] | None:
    """The fenced file of the journal and the offset behind its last acknowledged line, if there is one."""
    prefix = path.name
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return None
    for name in names:
        if name.startswith(prefix) and (match := _FENCED.fullmatch(name, len(prefix))) is not None:
            return path.parent / name, int(match[1])
    return None


def begin(path: Path, acknowledged: int) -> Path:
    """Take the live file away from everybody; needs no room on the disk. `acknowledged`: bytes, 0 for unknown."""
    target = path.with_name(f"{path.name}.fenced.{acknowledged}")
    os.rename(path, target)
    with contextlib.suppress(OSError):  # the disk may be failing; the rename counts for the running processes
        sync_folder(path.parent)
    return target


def carry_over(path: Path, fenced: tuple[Path, int]) -> int:
    """Make the new live file from the fenced one; how many lines were carried. Raises OSError, changing nothing."""
    descriptor = os.open(fenced[0], os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        head = read_range(descriptor, 0, min(size, LONGEST_HEADER)).partition(b"\n")[0]
        header = parse_header(head)
        if header is None:
            raise JournalError(f"{fenced[0]} has no readable header; move it away to go on")
        cut, seq, prev = len(head) + 1, header.first, header.prev.encode()
        if fenced[1] > cut:
            before = read_range(descriptor, max(0, fenced[1] - LONGEST_LINE - 1), fenced[1])
            last = before[:-1].rpartition(b"\n")[2]
            prefix = parse_prefix(last)
            if prefix is not None and before.endswith(b"\n"):
                cut, seq, prev = fenced[1], prefix.seq + 1, leaf_hex(last)
        data = read_range(descriptor, cut, size)
    finally:
        os.close(descriptor)
    tail = examine(data, cut, seq, prev)
    good = min([tail.end, *(damage.offset for damage in tail.damage)])
    carried = data[: good - cut]
    new = beside(path)
    write_new(new, make_header(header.origin, header.segment + 1, seq, prev).encode() + b"\n" + carried)
    os.rename(new, path)
    sync_folder(path.parent)
    return carried.count(b"\n")


def finish(path: Path, fenced: tuple[Path, int], stamp: str) -> None:
    """Seal the fenced file at its last acknowledged line; its other lines are in the live file, on disk."""
    descriptor = os.open(fenced[0], os.O_RDWR | os.O_CLOEXEC)
    live = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        head = read_range(descriptor, 0, min(size, LONGEST_HEADER)).partition(b"\n")[0]
        header = parse_header(head)
        following = read_range(live, 0, LONGEST_HEADER).partition(b"\n")[0]
        next_header = parse_header(following)
        if header is None or next_header is None or next_header.segment != header.segment + 1:
            os.rename(fenced[0], free_name(path, "aside", stamp))
            sync_folder(path.parent)
            return
        cut = max(fenced[1], len(head) + 1) if next_header.first != header.first else len(head) + 1
        tail = read_range(descriptor, cut, size)
        kept = read_range(live, len(following) + 1, len(following) + 1 + len(tail))
        if tail and kept[: len(tail)] != tail:  # not all of it could be carried over
            save_aside(path, "torn", stamp, tail)
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, cut)
    finally:
        os.close(descriptor)
        os.close(live)
    os.rename(fenced[0], path.with_name(sealed_name(path.name, header.segment, header.first)))
    sync_folder(path.parent)
