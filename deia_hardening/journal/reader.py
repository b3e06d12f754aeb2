"""Reads a journal while others write it: by seq, by time, following, from raw and compressed segments alike.

Nothing is locked and nothing is written. A line counts once its newline is there. Segments found damaged raise
nothing while reading: their unreadable lines are skipped; `verify` tells where and how.
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH116
from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deia_hardening.journal import fence
from deia_hardening.journal.blockgz import DamagedBlock
from deia_hardening.journal.lines import (
    LONGEST_HEADER,
    LONGEST_LINE,
    parse_header,
    parse_prefix,
    parse_time,
)
from deia_hardening.journal.segments import Segment, list_sealed
from deia_hardening.journal.text import Record, SegmentText, bisect, first_seq, line_after, records_of
from deia_hardening.journal.verify import Verdict, verify

__all__ = ["JournalReader", "Record", "SegmentText"]

_CHUNK = 1 << 20
_LISTINGS = 4
_SLACK_NS = 2_000_000_000


class JournalReader:
    """A view of the journal at `path`. Cheap to make; holds nothing open between calls; any thread may have its own."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def segments(self) -> list[Segment]:
        """All segments, oldest first, the live one last."""
        for _ in range(_LISTINGS):
            before = _identity(self.path)
            sealed = list_sealed(self.path)
            live = self._live(sealed)
            follows = live is None or live.number == (sealed[-1].number + 1 if sealed else 1)
            if follows and before == _identity(self.path):
                break  # else one was just being sealed, or files are missing
        if live is not None and not (sealed and sealed[-1].number >= live.number):
            sealed.append(live)
        return sealed

    def _live(self, sealed: list[Segment]) -> Segment | None:
        path = self.path
        if not path.exists() and (fenced := fence.find(path)) is not None:
            path = fenced[0]  # a sync failed, and no process could go on yet
        if not path.is_file():  # a pipe would hold up whoever opens it
            return None
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            header = parse_header(file.read(LONGEST_HEADER).partition(b"\n")[0])
            status = os.fstat(file.fileno())
            number = header.segment if header is not None else (sealed[-1].number + 1 if sealed else 1)
            first = header.first if header is not None else -1
            return Segment(number, first, path, status.st_size, False, True, status.st_mtime)
        return None

    def _open(self, segment: Segment) -> SegmentText | None:
        """Its text, also when it was sealed or compressed since it was listed. None when it is gone."""
        for _ in range(8):
            with contextlib.suppress(FileNotFoundError):
                text = SegmentText(segment)
                if not segment.live:
                    return text
                header = text.read(0, LONGEST_HEADER)
                if b'"segment":%d,' % segment.number in header[:400] or segment.first < 0:
                    return text
                text.close()
            again = [other for other in self.segments() if other.number == segment.number]
            if not again:
                return None
            segment = again[0]
        return None

    # -- reading

    def records(self, start: int = 0, end: int | None = None) -> Iterator[Record]:
        """The records from seq `start` up to, not including, `end`; without it, to the end as it is now."""
        segments = self.segments()
        for index, segment in enumerate(segments):
            if index + 1 < len(segments) and 0 <= segments[index + 1].first <= start:
                continue
            if end is not None and segment.first >= end:
                return
            text = self._open(segment)
            if text is None:
                continue
            with text, contextlib.suppress(DamagedBlock):
                offset = self._offset(text, start) if start > segment.first >= 0 else 0
                for record in records_of(text, offset):
                    if record.seq < start:
                        continue
                    if end is not None and record.seq >= end:
                        return
                    yield record

    __iter__ = records

    def get(self, seq: int) -> Record | None:
        """The record `seq`, or None where it is not there (yet, or any more)."""
        for record in self.records(seq, seq + 1):
            return record
        return None

    def read_at(self, segment: int, offset: int) -> Record | None:
        """The record whose line begins at `offset` of the text of segment number `segment`: for an index."""
        for found in self.segments():
            if found.number == segment:
                text = self._open(found)
                if text is None:
                    return None
                with text:
                    line, newline, _ = text.read(offset, LONGEST_LINE).partition(b"\n")
                prefix = parse_prefix(line)
                if not newline or prefix is None:
                    return None
                return Record(prefix.seq, prefix.time.decode(), line, segment, offset)
        return None

    def tail(self, count: int) -> list[Record]:
        """The last `count` records, oldest first."""
        last = self.last()
        if last is None or count < 1:
            return []
        return list(self.records(max(0, last.seq - count + 1)))[-count:]

    def last(self) -> Record | None:
        """The newest record."""
        for segment in reversed(self.segments()):
            text = self._open(segment)
            if text is None:
                continue
            with text, contextlib.suppress(DamagedBlock):
                size = text.size()
                back = 4096
                while True:
                    found = None
                    start = max(0, size - back)
                    where = line_after(text, start, size)
                    if where is not None:
                        for record in records_of(text, where[0]):
                            found = record
                    if found is not None:
                        return found
                    if start == 0:
                        break
                    back *= 8
        return None

    def _offset(self, text: SegmentText, seq: int) -> int:
        """Where to begin reading for `seq`: by bisection, at most one step of it too early."""
        return bisect(text, lambda found, _: found < seq)

    def seek_time(self, moment: int | datetime.datetime) -> int:
        """The seq of the first record whose time is at or after `moment` (ns since the epoch, or aware datetime).

        Times follow each other except where a clock was set back; within 2 s of `moment` that is seen to. Where no
        record is that late, the seq that follows the last one.
        """
        if isinstance(moment, datetime.datetime):
            delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            moment = (delta.days * 86400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1000
        wanted, early = moment, moment - _SLACK_NS
        segments = self.segments()
        low, high = 0, len(segments)  # the last segment that begins before `early`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._begins_before(segments[middle], early) else (low, middle)
        following = 0
        for segment in segments[low:]:
            text = self._open(segment)
            if text is None:
                continue
            with text, contextlib.suppress(DamagedBlock):
                for record in records_of(text, bisect(text, lambda _, ns: ns < early)):
                    if parse_time(record.time) >= wanted:
                        return record.seq
                    following = record.seq + 1
        return following

    def _begins_before(self, segment: Segment, ns: int) -> bool:
        text = self._open(segment)
        if text is None:
            return True
        with text, contextlib.suppress(DamagedBlock, ValueError):
            for record in records_of(text, 0):
                return parse_time(record.time) < ns
        return False

    def follow(
        self,
        start: int | None = None,
        *,
        poll: float = 0.1,
        stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[Record]:
        """The records from `start` (default: only new ones) on, for ever, over rotations; asks every `poll` seconds.

        Blocks; ends when `stop()` is true.
        """
        if start is None:
            last = self.last()
            start = last.seq + 1 if last is not None else 0
        text: SegmentText | None = None
        offset = 0
        try:
            while True:
                progressed = False
                if text is not None:
                    for record in records_of(text, offset):
                        offset = record.offset + len(record.line) + 1
                        if record.seq >= start:
                            start = record.seq + 1
                            progressed = True
                            yield record
                if not progressed:
                    if text is not None and not _is_at(text, self.path):
                        for record in records_of(text, offset):  # what came before it was sealed
                            if record.seq >= start:
                                start = record.seq + 1
                                yield record
                        text.close()
                        text = None
                    if text is None:
                        for record in self.records(start):
                            start = record.seq + 1
                            yield record
                        with contextlib.suppress(FileNotFoundError):
                            live = [segment for segment in self.segments() if segment.live]
                            if live:
                                text = SegmentText(live[0])
                                if first_seq(text) > start:  # others were sealed meanwhile
                                    text.close()
                                    text = None
                                else:
                                    offset = self._offset(text, start)
                                continue
                    if stop():
                        return
                    sleep(poll)
                elif stop():
                    return
        finally:
            if text is not None:
                text.close()

    def verify(self) -> Verdict:
        """Read everything and check each header, seq and hash: the verdict with what is wrong, the first first."""
        return verify(self)

    def was_pruned(self, seq: int) -> bool:
        """Whether a later record says that retention deleted the record `seq`. Reads all that follows it."""
        later = (record for record in self.records(seq + 1) if b'"kind":"journal.pruned"' in record.line)
        return any(record.event().get("through", -1) >= seq for record in later)

    def text_of(self, segment: Segment) -> SegmentText | None:
        """The text of a segment; None when it is gone. The caller closes it."""
        return self._open(segment)


def _identity(path: Path) -> int:
    """The inode of the file at `path`, 0 where there is none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _is_at(text: SegmentText, path: Path) -> bool:
    return _identity(path) == text.inode()
