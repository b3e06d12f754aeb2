"""Records that no index covers yet: the end of the live segment, a segment whose index is still being made.

A query never waits for an index: what has none is offered line by line, some 8 µs a record, where indexing costs 60.
Blocking; the caller's lock is held.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator

import attrs

from deia_audit.query.index import SLACK_NS, IndexWriter, SegmentIndex, lines_of, memory_index
from deia_hardening.journal import Segment
from deia_hardening.journal.lines import LONGEST_LINE, parse_prefix, parse_time
from deia_hardening.journal.reader import SegmentText

AT_ONCE = 512
"""Records that one query adds to the live segment's index: 20 ms. The rest is left to `advance`."""
_READ = 1 << 18
_TIMED = 256
"""Every so many records the time is noted, for `since`."""


class Lines:
    """Where the lines of a segment begin, for records `[first, first + size)`, counted from the segment's first one."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._offsets = array("Q")
        self._times: list[int] = []

    @property
    def stop(self) -> int:
        return self.first + len(self._offsets)

    def add(self, offset: int, line: bytes) -> None:
        if len(self._offsets) % _TIMED == 0:
            prefix = parse_prefix(line)
            self._times.append(parse_time(prefix.time) if prefix is not None else 0)
        self._offsets.append(offset)

    def take(self, count: int) -> array[int]:
        """Take the first `count` (a multiple of what is timed, or all) out."""
        taken = self._offsets[:count]
        del self._offsets[:count]
        del self._times[: -(-count // _TIMED)]
        self.first += len(taken)
        return taken

    def offered(self, text: SegmentText, low: int, high: int, *, newest_first: bool) -> Iterator[tuple[int, bytes]]:
        """Yield number and line of every record in `[low, high)`; an empty line where none ends or it can't be read.

        Many are read at once: each read gives the interpreter to a busy serving loop, which keeps it for milliseconds.
        """
        numbers = range(max(low, self.first), min(high, self.stop))
        data, start = b"", 0
        for number in reversed(numbers) if newest_first else numbers:
            offset = self._offsets[number - self.first]
            end = data.find(b"\n", offset - start) if offset >= start else -1
            if end < 0:
                start = max(0, offset - _READ) if newest_first else offset
                try:
                    data = text.read(start, offset - start + LONGEST_LINE if newest_first else _READ + LONGEST_LINE)
                except (OSError, ValueError):
                    data = b""
                end = data.find(b"\n", offset - start)
            yield number, data[offset - start : end] if end >= 0 else b""

    def after(self, ns: int) -> int:
        """Return the first number that may be at or after a time, with slack for clocks that were set back."""
        place = bisect_right(self._times, ns - SLACK_NS) - 1
        return self.first + max(place, 0) * _TIMED


def lines_in(text: SegmentText) -> Lines:
    """Return the lines of a whole segment; some 0.5 µs each."""
    found = Lines()
    for offset, line in lines_of(text, 0):
        found.add(offset, line)
    return found


@attrs.define
class Live:
    """The live segment: its index in memory, what stands behind that index, and how far it has been read."""

    segment: Segment
    index: SegmentIndex
    writer: IndexWriter
    rest: Lines
    at: int = 0

    @classmethod
    def of(cls, segment: Segment) -> Live:
        index, writer = memory_index(max(segment.first, 0))
        return cls(segment, index, writer, Lines())

    @property
    def end(self) -> int:
        """How many records the log holds."""
        return max(self.segment.first, 0) + self.rest.stop

    def catch_up(self, text: SegmentText) -> None:
        """Read what came."""
        for offset, line in lines_of(text, self.at):
            self.rest.add(offset, line)
            self.at = offset + len(line) + 1

    def advance(self, line_at: Callable[[int], bytes]) -> bool:
        """Index some of what is not indexed; whether more is left."""
        first = max(self.segment.first, 0) + self.rest.first
        for number, offset in enumerate(self.rest.take(AT_ONCE)):
            self.writer.add(first + number, offset, line_at(offset))
        self.writer.flush()
        return self.rest.stop > self.rest.first
