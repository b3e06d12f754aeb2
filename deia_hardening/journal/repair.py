"""A look at a journal's file when it is opened: its header and its end.

Only the last part is read (as much as could have been unsynced), so opening costs the same for a log of any size.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec

from deia_hardening.journal.blockgz import BlockReader
from deia_hardening.journal.disk import read_range
from deia_hardening.journal.errors import JournalError
from deia_hardening.journal.lines import (
    FORMAT,
    GENESIS,
    LONGEST_HEADER,
    LONGEST_LINE,
    Header,
    TimeFormat,
    body_of,
    leaf_hex,
    make_header,
    parse_header,
    parse_prefix,
    parse_time,
)
from deia_hardening.journal.segments import Segment, list_sealed
from deia_hardening.journal.tail import Damage, Tail, examine


@attrs.frozen
class Found:
    """What a file holds: its header, its end, and what is wrong with it."""

    header: Header
    header_size: int
    tail: Tail
    damage: tuple[Damage, ...]


def birth(now_ns: int) -> bytes:
    """The first bytes of a new log: the header, and record 0, which binds the origin into the chain."""
    origin = str(uuid.uuid4())
    line = b'{"seq":0,"time":"%b","prev":"%b","kind":"journal.created","origin":"%b"}' % (
        TimeFormat()(now_ns),
        GENESIS,
        origin.encode(),
    )
    return make_header(origin, 1, 0, GENESIS).encode() + b"\n" + line + b"\n"


def inspect(path: Path, descriptor: int, size: int, scan_bytes: int) -> Found | None:
    """Look at the file behind `descriptor`. None where it holds no line at all.

    Raises JournalError for a file that a newer release wrote.
    """
    start = read_range(descriptor, 0, min(size, LONGEST_HEADER + LONGEST_LINE))
    line, newline, after = start.partition(b"\n")
    if not newline:
        return None
    header = parse_header(line)
    header_size = len(line) + 1
    damage: tuple[Damage, ...] = ()
    if header is None:
        if line.startswith(b'{"format":"deia-journal/') and not line.startswith(b'{"format":"%b"' % FORMAT.encode()):
            raise JournalError(f"{path} was written by a newer release ({line[:60]!r}); it was not touched")
        header = _guess(path, line, after.partition(b"\n")[0])
        if header is None:
            return None
        damage = (Damage(0, header.first, "the segment's header is not readable"),)
    tail = _tail(descriptor, size, scan_bytes, header, header_size)
    return Found(header, header_size, tail, damage + tail.damage)


def began_ns(descriptor: int, header_size: int, end: int, now_ns: Callable[[], int]) -> int:
    """The time of a segment's first record; now, where it has none that can be read."""
    line = read_range(descriptor, header_size, min(end, header_size + LONGEST_LINE)).partition(b"\n")[0]
    prefix = parse_prefix(line)
    with contextlib.suppress(ValueError):
        if prefix is not None:
            return parse_time(prefix.time)
    return now_ns()


def _tail(descriptor: int, size: int, scan_bytes: int, header: Header, header_size: int) -> Tail:
    while size - header_size > scan_bytes:
        base = size - scan_bytes
        data = read_range(descriptor, base - 1, size)
        skip = data.find(b"\n") + 1
        if skip:
            base += skip - 1
            tail = examine(data[skip:], base, None, None)
            if tail.prev and not (tail.torn is not None and tail.end == base):
                return tail
        scan_bytes *= 8
    return examine(read_range(descriptor, header_size, size), header_size, header.first, header.prev.encode())


def _guess(path: Path, line: bytes, record: bytes) -> Header | None:
    """The header of a file whose first line is damaged, from what surrounds it."""
    prefix = parse_prefix(record)
    if prefix is None or parse_prefix(line) is not None:
        return None
    number, origin = 1, ""
    sealed = list_sealed(path)
    if sealed:
        number = sealed[-1].number + 1
        origin = _origin(sealed[-1])
    elif prefix.seq == 0:
        try:
            origin = str(msgspec.json.decode(b"{" + body_of(record) + b"}").get("origin", ""))
        except msgspec.DecodeError:
            return None
    return make_header(origin, number, prefix.seq, prefix.prev) if origin else None


def _origin(segment: Segment) -> str:
    if segment.compressed:
        with BlockReader(segment.path) as reader:
            line = reader.read(0, LONGEST_HEADER)
    else:
        with open(segment.path, "rb") as file:
            line = file.read(LONGEST_HEADER)
    header = parse_header(line.partition(b"\n")[0])
    return header.origin if header is not None else ""


def end_of_sealed(path: Path, segment: Segment) -> tuple[str, int, int, bytes]:
    """Where a sealed segment ends: origin, its number, the seq and the prev of the record that follows."""
    if segment.compressed:
        with BlockReader(segment.path) as reader:
            size = reader.length()
            data = reader.read(max(0, size - 4 * LONGEST_LINE), size)
            head = reader.read(0, LONGEST_HEADER)
        header = parse_header(head.partition(b"\n")[0])
        lines = data.splitlines()
        prefix = parse_prefix(lines[-1]) if lines else None
        if header is None:
            raise JournalError(f"{segment.path} has no readable header; move it away to begin a new log")
        if prefix is None:
            return header.origin, segment.number, header.first, header.prev.encode()
        return header.origin, segment.number, prefix.seq + 1, leaf_hex(lines[-1])
    descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = inspect(path, descriptor, os.fstat(descriptor).st_size, 4 * LONGEST_LINE)
    finally:
        os.close(descriptor)
    if found is None:
        raise JournalError(f"{segment.path} has no readable header; move it away to begin a new log")
    return found.header.origin, segment.number, found.tail.next_seq, found.tail.prev
