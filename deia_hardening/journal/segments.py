"""The files of a journal: names, listing, and which sealed segments may go.

The live file keeps the journal's name; a sealed one is `<name>.<number>.<first seq>`, with `.gz` when
compressed, so a directory listing finds the segment of a record without opening one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

_LISTINGS = 4
_SEALED = re.compile(r"\.(\d{6,12})\.(\d{12,20})(\.gz)?")


@attrs.frozen
class Segment:
    """One file of a journal. `first` is the seq of its first record, `modified` seconds since the epoch.

    `size` is of the file as it is stored. The live one has number 0 and `first` -1 where its header is unread.
    """

    number: int
    first: int
    path: Path
    size: int
    compressed: bool
    live: bool
    modified: float


def sealed_name(name: str, number: int, first: int, *, compressed: bool = False) -> str:
    """The file name of a sealed segment of the journal called `name`."""
    return f"{name}.{number:06d}.{first:012d}{'.gz' if compressed else ''}"


def list_sealed(path: Path) -> list[Segment]:
    """The sealed segments of the journal at `path`, oldest first; of a pair raw and compressed, the raw one.

    A folder that changes while it is listed is listed again, so a segment that is just being compressed is not missed.
    """
    found: dict[int, Segment] = {}
    for _ in range(_LISTINGS):
        whole = _list_once(path, found)
        numbers = sorted(found)
        if whole and (not numbers or numbers[-1] - numbers[0] == len(numbers) - 1):
            break
    return [found[number] for number in sorted(found)]


def _list_once(path: Path, found: dict[int, Segment]) -> bool:
    """One look at the folder, into `found`. False where a file went away meanwhile."""
    found.clear()
    whole = True
    name = path.name
    try:
        entries = list(os.scandir(path.parent))
    except FileNotFoundError:
        return True
    for entry in entries:
        if not entry.name.startswith(name):
            continue
        match = _SEALED.fullmatch(entry.name, len(name))
        if match is None:
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            whole = False
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        number, first, compressed = int(match[1]), int(match[2]), match[3] is not None
        if compressed and number in found:
            continue
        found[number] = Segment(
            number, first, path.parent / entry.name, status.st_size, compressed, False, status.st_mtime
        )
    return whole


def to_prune(
    sealed: Sequence[Segment],
    *,
    now: float,
    retain_age: float,
    retain_bytes: int,
    need: int = 0,
    held: Callable[[Segment], bool] = lambda segment: False,
) -> list[Segment]:
    """The oldest sealed segments that retention lets go; pure.

    Age and bytes are limits (0: none); `need` is how many bytes must be freed besides. Only a run of the oldest
    goes, so what is left is whole: the first segment that is to be kept, or is held, ends it.
    """
    total = sum(segment.size for segment in sealed)
    freed = 0
    gone: list[Segment] = []
    for segment in sealed:
        old = retain_age > 0 and now - segment.modified > retain_age
        large = retain_bytes > 0 and total - freed > retain_bytes
        if not (old or large or freed < need) or held(segment):
            break
        gone.append(segment)
        freed += segment.size
    return gone


def segment_at(path: Path) -> Segment:
    """The sealed segment in the file at `path`. Raises ValueError where the name is none of a sealed segment."""
    match = re.search(_SEALED.pattern + "$", path.name)
    if match is None:
        raise ValueError(f"{path.name} is not the name of a sealed segment")
    status = path.stat()
    return Segment(int(match[1]), int(match[2]), path, status.st_size, match[3] is not None, False, status.st_mtime)
