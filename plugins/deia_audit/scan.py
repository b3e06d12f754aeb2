"""Reads a range of a segment and hashes its lines, quickly: what one process of a verification does.

`main` takes ranges from standard input and answers on standard output: a verification uses several cores without
importing the caller's program again. `BOOT` starts it. Reads only.
"""

from __future__ import annotations

import os
import sys
from binascii import hexlify
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deia_audit.tiles import TILE_WIDTH, full_tile_root
from deia_audit.tree import HASH_SIZE
from deia_hardening.journal.lines import parse_prefix

if TYPE_CHECKING:
    from deia_hardening.journal.reader import SegmentText

BOOT = """
import os, sys, types
sys.path[:] = sys.argv[1].split(os.pathsep)
for argument in sys.argv[2:]:
    name, _, path = argument.partition("=")
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [path]
from deia_audit.scan import main
main()
"""
"""Starts `main` with the caller's path and the packages' folders: what `site` and their `__init__` import, and what an
editable install looks through, would be four fifths of a start."""
_SEQ_AT = len('{"seq":')
_TIME = len(',"time":"2026-11-23T05:05:38.123456Z","prev":"')
MARKS = (b'"kind":"system","outcome":"success","level":"info","action":"audit.', b'"kind":"journal.')
"""Members of lines that a verification reads, as the sealer and the journal write them.

Quotes inside of values are escaped, so a client can't fake them.
"""
_HTTP = b'","kind":"http",'
_HTTP_AT = len('","id":"') + 36
"""Where a request's record says what it is, counted from the end of `prev`: most lines, and none that is read."""
_leaf: Callable[[], Any] = sha256(b"\0").copy


class Range(msgspec.Struct, array_like=True):
    """Bytes `[start, end)` of a segment's text, which begin and end at a line's."""

    path: str
    compressed: bool
    start: int
    end: int


class Part(msgspec.Struct, array_like=True):
    """What a range holds: its first number, `count` lines, their leaf hashes and how the chain fits inside.

    `bad` is the place of the first line that does not continue the one before, -1 for none. `roots` are of the full
    tiles, from `aligned` (a place) on. `error` is set where the text could not be read.
    """

    first: int
    count: int
    first_prev: bytes
    leaves: bytes
    aligned: int
    roots: bytes
    special: list[tuple[int, bytes]]
    bad: int
    error: str = ""


def scan(text: bytes) -> Part:
    """Hash the lines of `text`, which begins at a line's start and ends with a newline."""
    lines = text.split(b"\n")
    lines.pop()
    if not lines:
        return Part(-1, 0, b"", b"", 0, b"", [], -1)
    # a copied hash costs half of what a new one does; `update` returns None
    digests = [leaf.digest() for line in lines if not (leaf := _leaf()).update(line)]
    leaves = b"".join(digests)
    prefix = parse_prefix(lines[0])
    if prefix is None:
        return Part(-1, len(lines), b"", leaves, 0, b"", [], 0)
    first = prefix.seq
    bad = _check(lines, digests, leaves, first)
    if b"\0" in text:  # JSON has none: sectors that a power cut left unwritten
        hole = next(place for place, line in enumerate(lines) if b"\0" in line)
        bad = hole if bad < 0 else min(bad, hole)
    aligned = -first % TILE_WIDTH
    step = TILE_WIDTH * HASH_SIZE
    roots = [full_tile_root(leaves[at : at + step]) for at in range(aligned * HASH_SIZE, len(leaves) - step + 1, step)]
    return Part(first, len(lines), prefix.prev, leaves, aligned, b"".join(roots), _special(lines, first), bad)


def _check(lines: list[bytes], digests: list[bytes], leaves: bytes, first: int) -> int:
    """Return the place of the first line whose number or previous hash does not continue, or -1. 0.2 µs a line.

    The hashes in between bind the numbers, so of those only the first and the last are read.
    """
    place, count = 0, len(lines)
    while place < count:
        digits = len(str(first + place))
        stop = min(count, place + 10**digits - (first + place))  # the numbers up to here have as many digits
        at = _SEQ_AT + digits + _TIME
        end = at + 64
        start = max(place, 1)  # the first line's is checked by whoever knows what stands before it
        claimed = b"".join([line[at:end] for line in lines[start:stop]])
        real = leaves[(start - 1) * HASH_SIZE : (stop - 1) * HASH_SIZE]
        last = lines[stop - 1]
        if claimed != hexlify(real) or not last.startswith(b'{"seq":%d,' % (first + stop - 1)):
            return _check_slowly(lines, digests, first, place, stop)
        place = stop
    return -1


def _check_slowly(lines: list[bytes], digests: list[bytes], first: int, start: int, stop: int) -> int:
    for place in range(start, stop):
        prefix = parse_prefix(lines[place])
        if prefix is None or prefix.seq != first + place:
            return place
        if place and prefix.prev != hexlify(digests[place - 1]):
            return place
    return -1


def _special(lines: list[bytes], first: int) -> list[tuple[int, bytes]]:
    """Return the lines that a verification reads itself, with their places. 0.1 µs a line."""
    found: list[tuple[int, bytes]] = []
    place, count = 0, len(lines)
    while place < count:
        digits = len(str(first + place))
        stop = min(count, place + 10**digits - (first + place))
        at = _SEQ_AT + digits + _TIME + 64 + _HTTP_AT
        end = at + len(_HTTP)
        others = [number for number, line in enumerate(lines[place:stop], place) if line[at:end] != _HTTP]
        found += [(number, line) for number in others if any(mark in (line := lines[number]) for mark in MARKS)]
        place = stop
    return found


def read_range(task: Range) -> bytes:
    """Return the bytes of a range. Raises OSError, ValueError for what can't be read."""
    if task.compressed:
        with _text(task.path) as text:
            return text.read(task.start, task.end - task.start)
    descriptor = os.open(task.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, task.end - task.start, task.start)
    finally:
        os.close(descriptor)


def _text(path: str) -> SegmentText:
    from deia_hardening.journal.reader import SegmentText
    from deia_hardening.journal.segments import Segment

    return SegmentText(Segment(0, -1, Path(path), 0, True, False, 0.0))


def scan_range(task: Range) -> Part:
    """Read and scan a range; an unreadable one comes back with its error."""
    try:
        return scan(read_range(task))
    except (OSError, ValueError) as error:
        return Part(-1, 0, b"", b"", 0, b"", [], 0, str(error) or type(error).__name__)


def main() -> None:
    """Answer ranges from standard input until it ends; every message is behind its 4-byte length."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    decoder = msgspec.msgpack.Decoder(Range)
    while head := source.read(4):
        task = decoder.decode(source.read(int.from_bytes(head, "big")))
        answer = msgspec.msgpack.encode(scan_range(task))
        target.write(len(answer).to_bytes(4, "big"))
        target.write(answer)
        target.flush()
