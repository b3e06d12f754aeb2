"""The text of one segment, raw or compressed, and the records in it: what reading, seeking and verifying share.

Nothing is locked. A line counts once its newline is there; what is no line of a journal is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import msgspec

from deia_hardening.journal.blockgz import BlockReader
from deia_hardening.journal.lines import (
    LONGEST_HEADER,
    LONGEST_LINE,
    body_of,
    leaf_hash,
    parse_header,
    parse_prefix,
    parse_time,
)
from deia_hardening.journal.segments import Segment

_CHUNK = 1 << 20


@attrs.frozen
class Record:
    """One line. `time` as it is written (UTC), `offset` the byte at which the line begins in its segment's text."""

    seq: int
    time: str
    line: bytes
    segment: int
    offset: int

    @property
    def leaf(self) -> bytes:
        """The RFC 9162 leaf hash, 32 bytes."""
        return leaf_hash(self.line)

    def event(self) -> dict[str, Any]:
        """What was appended, decoded. Raises msgspec.DecodeError for a damaged line."""
        body = body_of(self.line)
        return msgspec.json.decode(b"{" + body + b"}", type=dict) if body else {}


class SegmentText:
    """The text of one segment at any offset, raw or compressed. Close it after use."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._block: BlockReader | None = None
        self._descriptor = -1
        if segment.compressed:
            self._block = BlockReader(segment.path)
        else:
            self._descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> SegmentText:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def size(self) -> int:
        """Bytes of text."""
        return self._block.length() if self._block is not None else os.fstat(self._descriptor).st_size

    def inode(self) -> int:
        return os.fstat(self._descriptor).st_ino if self._descriptor >= 0 else -1

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of text at `offset`."""
        if self._block is not None:
            return self._block.read(offset, size)
        return os.pread(self._descriptor, size, offset)


def lines(text: SegmentText, offset: int) -> Iterator[tuple[int, bytes]]:
    """The whole lines from `offset` (a line's start) on, with where each begins."""
    pending = b""
    while chunk := text.read(offset + len(pending), _CHUNK):
        data = pending + chunk
        end = data.rfind(b"\n") + 1
        for line in data[:end].split(b"\n")[:-1]:
            yield offset, line
            offset += len(line) + 1
        pending = data[end:]
        if len(pending) > 16 * LONGEST_LINE:  # no newline for a megabyte: not our text
            offset += len(pending)
            pending = b""


def line_after(text: SegmentText, offset: int, size: int) -> tuple[int, bytes] | None:
    """The first whole line that begins at or after `offset`, skipping the header."""
    start = offset
    if offset > 0:
        while True:
            data = text.read(start - 1, LONGEST_LINE)
            if not data:
                return None
            at = data.find(b"\n")
            if at >= 0:
                start += at
                break
            start += len(data)
    for where, line in lines(text, start):
        if where == 0 or parse_prefix(line) is None:
            continue
        return where, line
    return None


def first_seq(text: SegmentText) -> int:
    """The seq of a segment's first record, -1 where its header can't be read."""
    header = parse_header(text.read(0, LONGEST_HEADER).partition(b"\n")[0])
    return header.first if header is not None else -1


def records_of(text: SegmentText, offset: int) -> Iterator[Record]:
    number = text.segment.number
    for where, line in lines(text, offset):
        prefix = parse_prefix(line)
        if prefix is not None:
            yield Record(prefix.seq, prefix.time.decode(), line, number, where)


def bisect(text: SegmentText, before: Callable[[int, int], bool]) -> int:
    """The offset of some line at or shortly before the first for which `before(seq, ns)` is false."""
    low, high = 0, text.size()
    best = 0
    while high - low > 4096:
        middle = (low + high) // 2
        found = line_after(text, middle, high)
        if found is None or found[0] >= high:
            high = middle
            continue
        prefix = parse_prefix(found[1])
        assert prefix is not None
        try:
            ns = parse_time(prefix.time)
        except ValueError:
            ns = 0
        if before(prefix.seq, ns):
            low = best = found[0]
        else:
            high = middle
    return best
