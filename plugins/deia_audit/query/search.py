"""Answers a query: the index offers records, the log is read again, every line is checked against the tree.

Blocking and serialised by a lock; holds index files and segments open only while queries come (`close` gives them
back). Pages of one query share the tree size of the first, so they never shift.
"""

from __future__ import annotations

import functools
import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import attrs
import msgspec

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.proof import TlogProof
from deia_audit.query.build import build_elsewhere
from deia_audit.query.grammar import Cursor, Query, QueryError
from deia_audit.query.index import (
    IndexDamaged,
    IndexWriter,
    SegmentIndex,
    build,
    index_path,
    lines_of,
    memory_index,
)
from deia_audit.tilestore import TileNodes, TileStore
from deia_audit.tree import inclusion_proof
from deia_hardening.journal import JournalReader, Segment
from deia_hardening.journal.lines import LONGEST_LINE, parse_time
from deia_hardening.journal.reader import SegmentText

_SETTLED_NS = 100_000_000
"""Nanoseconds after which a folder's time of change is believed: file systems stamp in steps of some milliseconds."""
_TILES_KEPT = 2048
"""Tiles of 16 KiB that stay in memory for inclusion proofs: 32 MiB at most."""
_FIRST_READ = 1536
_MOST_WITHOUT = 16
"""Terms that the index leaves out for a negated filter."""


class Row(msgspec.Struct, frozen=True):
    """One record that was found: its number, its exact line, and a proof where one was asked for and can be had."""

    seq: int
    line: bytes
    proof: str = ""


@attrs.frozen
class Page:
    """A page of a query.

    `size` is the tree size that it is pinned to; `damaged` are records that failed the check; `proofs` says whether
    rows carry them.
    """

    rows: tuple[Row, ...]
    size: int
    next: str = ""
    count: int | None = None
    damaged: tuple[int, ...] = ()
    proofs: bool = False


@attrs.define
class _Live:
    """The live segment's index in memory, and how far it has been read."""

    segment: Segment
    index: SegmentIndex
    writer: IndexWriter
    at: int = 0
    next: int = 0


class Search:
    """The search over one trail. Callable from any thread; one query at a time."""

    def __init__(
        self,
        layout: Layout,
        checkpoint: Callable[[], Checkpoint | None],
        *,
        connections: int = 128,
        elsewhere: Callable[[Segment, Path], bool] = build_elsewhere,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self._layout = layout
        self._checkpoint = checkpoint
        self._connections = connections
        self._elsewhere = elsewhere
        self._settle = settle
        self._reader = JournalReader(layout.log)
        self._nodes = TileNodes(TileStore(layout.evidence), 0, limit=_TILES_KEPT)
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, SegmentIndex] = OrderedDict()
        self._texts: OrderedDict[int, SegmentText] = OrderedDict()
        self._live: _Live | None = None
        self._listed: list[Segment] = []
        self._listed_at = -1
        self._at_rest = (-1, 0)
        """The number of the newest segment, where it is sealed, and how many records the log then holds."""
        self.rebuilt = 0

    def run(self, query: Query) -> Page:
        """Answer a query. Raises QueryError for a cursor that this log can't have given.

        `settle`, which the caller gave, is asked for a checkpoint of the newest records where proofs are wanted.
        """
        if query.proof and query.cursor is None:
            self._settle()
        with self._lock:
            return self._run(query)

    def close(self) -> None:
        """Give back every descriptor; the next query opens them again."""
        with self._lock:
            for index in self._indexes.values():
                index.close()
            for text in self._texts.values():
                text.close()
            self._indexes.clear()
            self._texts.clear()
            if self._live is not None:
                self._live.index.close()
                self._live = None

    # -- one query --

    def _run(self, query: Query) -> Page:
        segments = self._segments()
        checkpoint = self._checkpoint()
        self._nodes.grow(checkpoint.head.size if checkpoint is not None else 0)
        end = self._catch_up(segments)
        cursor = query.cursor
        if cursor is not None and cursor.size > end:
            raise QueryError("cursor", "the cursor is of a longer log than this one")
        size = cursor.size if cursor is not None else end
        low, high = 0, size
        if cursor is not None and not query.count:  # what is counted is what all pages show
            low, high = (0, cursor.last) if query.newest_first else (cursor.last + 1, size)
        rows: list[Row] = []
        damaged: list[int] = []
        count = 0
        more = False
        timed = query.since is not None or query.until is not None
        decode = _decoder(query.members | {"time"} if timed else query.members)
        for seq, line in self._candidates(query, segments, low, high, size, damaged):
            record = decode(line)
            if not query.matches(record, parse_time(record["time"]) if timed else 0):
                continue
            count += 1
            if cursor is not None and (seq >= cursor.last if query.newest_first else seq <= cursor.last):
                continue
            if len(rows) < query.limit:
                rows.append(Row(seq, line, self._proof(seq, checkpoint) if query.proof else ""))
            else:
                more = True
                if not query.count:
                    break
        following = Cursor(size, rows[-1].seq, query.digest, query.now_ns).encode() if more and rows else ""
        counted = count if query.count else None
        return Page(tuple(rows), size, following, counted, tuple(damaged), proofs=query.proof)

    def _candidates(
        self, query: Query, segments: list[Segment], low: int, high: int, size: int, damaged: list[int]
    ) -> Iterator[tuple[int, bytes]]:
        bounds = [*(segment.first for segment in segments[1:]), size]
        pairs = list(zip(segments, bounds, strict=True))
        for segment, stop in reversed(pairs) if query.newest_first else pairs:
            start = max(segment.first, 0)
            if start >= high or stop <= low or start >= stop:
                continue
            index = self._index(segment)
            lowest, highest = max(low, start) - start, min(high, stop) - start
            if query.since is not None:
                lowest = max(lowest, index.after(query.since))
            text: SegmentText | None = None  # opened for what the index offers, not before
            for number, offset in self._numbers(query, index, lowest, highest):
                if text is None:
                    text = self._text(segment)
                line = _line(text, offset)
                seq = start + number
                if self._sound(seq, line):
                    yield seq, line
                else:
                    damaged.append(seq)

    def _numbers(self, query: Query, index: SegmentIndex, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield what the index offers, in order: the rarest group of terms drives, the others must hold too."""
        groups: list[tuple[int, tuple[int, ...]]] = []
        without: list[int] = []
        left: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        for one in query.filters:
            found = index.terms(one)
            if found is None:
                continue
            if one.negated:
                if any(count >= index.size for _, count in found):
                    return iter(())  # every record of the segment has it
                left = left or index.others(one, sum(count for _, count in found))
                if len(found) <= _MOST_WITHOUT:  # looked up for each record; the check of the line decides anyway
                    without += (key for key, _ in found)
                continue
            groups.append((sum(count for _, count in found), tuple(key for key, _ in found)))
        for word in query.words:
            hit = index.lookup("q", word)
            groups.append((hit[1], (hit[0],)) if hit is not None else (0, ()))
        without += (hit[0] for word in query.without if (hit := index.lookup("q", word)) is not None)
        if any(not keys for _, keys in groups):
            return iter(())
        groups.sort()
        if not groups and left is not None:
            return self._left(index, *left, without, low, high, newest_first=query.newest_first)
        if not groups:
            return index.numbers(None, (), without, low, high, newest_first=query.newest_first)
        drivers, also = groups[0][1], [keys for _, keys in groups[1:]]
        streams = [index.numbers(key, also, without, low, high, newest_first=query.newest_first) for key in drivers]
        if len(streams) == 1:
            return streams[0]
        return _distinct(heapq.merge(*streams, reverse=query.newest_first))

    @staticmethod
    def _left(
        index: SegmentIndex,
        keys: tuple[int, ...],
        lacking: tuple[int, ...],
        without: list[int],
        low: int,
        high: int,
        *,
        newest_first: bool,
    ) -> Iterator[tuple[int, int]]:
        """Yield what a negated filter leaves, where that is little of a segment."""
        streams = [index.numbers(key, (), without, low, high, newest_first=newest_first) for key in keys]
        streams.append(index.those(lacking, low, high, newest_first=newest_first))
        return _distinct(heapq.merge(*streams, reverse=newest_first))

    def _sound(self, seq: int, line: bytes) -> bool:
        """Whether a line is the record that it should be: its number, and its hash in the tree where it is there."""
        if not line.startswith(b'{"seq":%d,"time":"' % seq):
            return False
        if seq >= self._nodes.size:
            return True
        try:
            return self._nodes.leaf(seq) == sha256(b"\0" + line).digest()  # `leaf_hash`, without a call
        except LookupError:
            return True  # no tile to compare with; `audit verify` tells that

    def _proof(self, seq: int, checkpoint: Checkpoint | None) -> str:
        if checkpoint is None or seq >= checkpoint.head.size:
            return ""
        try:
            path = inclusion_proof(self._nodes, seq, checkpoint.head.size)
        except LookupError:
            return ""
        return str(TlogProof(seq, tuple(path), checkpoint))

    # -- files --

    def _segments(self) -> list[Segment]:
        """Return the segments; listing a hundred costs a millisecond, so it is done when their folder has changed."""
        changed = self._layout.log.parent.stat().st_mtime_ns
        if changed != self._listed_at:
            self._listed = self._reader.segments()
            settled = time.time_ns() - changed > _SETTLED_NS  # else a change within the clock's grain would be missed
            self._listed_at = changed if settled else -1
        return self._listed

    def _index(self, segment: Segment) -> SegmentIndex:
        live = self._live
        if segment.live and live is not None:
            return live.index
        index = self._indexes.get(segment.number)
        if index is None:
            index = self._open_index(segment)
            self._indexes[segment.number] = index
            while len(self._indexes) > self._connections:
                self._indexes.popitem(last=False)[1].close()
        else:
            self._indexes.move_to_end(segment.number)
        return index

    def _open_index(self, segment: Segment) -> SegmentIndex:
        path = index_path(self._layout.index, segment)
        try:
            return SegmentIndex.open(path, segment.first)
        except IndexDamaged:
            self.rebuilt += 1
            for _try in range(3):  # the segment may be compressed, and so renamed, at this very moment
                if self._elsewhere(segment, self._layout.index):
                    break
                try:
                    build(segment, self._layout.index)
                    break
                except FileNotFoundError:
                    segment = self._listed_again(segment)
            return SegmentIndex.open(path, segment.first)

    def _listed_again(self, segment: Segment) -> Segment:
        return next((one for one in self._reader.segments() if one.number == segment.number), segment)

    def _text(self, segment: Segment) -> SegmentText:
        text = self._texts.get(segment.number)
        if text is None:
            try:
                text = SegmentText(segment)
            except FileNotFoundError:
                text = SegmentText(self._listed_again(segment))
            self._texts[segment.number] = text
            while len(self._texts) > self._connections:
                self._texts.popitem(last=False)[1].close()
        else:
            self._texts.move_to_end(segment.number)
        return text

    def _catch_up(self, segments: list[Segment]) -> int:
        """Index what came into the live segment, and return how many records the log holds."""
        if not segments:
            return 0
        segment = segments[-1]
        live = self._live
        if live is not None and (not segment.live or live.segment.number != segment.number):
            live.index.close()
            stale = self._texts.pop(live.segment.number, None)
            if stale is not None:
                stale.close()
            live = self._live = None
        if not segment.live:
            if self._at_rest[0] != segment.number:
                last = self._reader.last()
                self._at_rest = (segment.number, last.seq + 1 if last is not None else 0)
            return self._at_rest[1]
        if live is None:
            index, writer = memory_index(max(segment.first, 0))
            live = self._live = _Live(segment, index, writer, 0, max(segment.first, 0))
        before = live.next
        for offset, line in lines_of(self._text(segment), live.at):
            live.writer.add(live.next, offset, line)
            live.at = offset + len(line) + 1
            live.next += 1
        if live.next != before:
            live.writer.flush()
        return live.next


@functools.lru_cache(maxsize=128)
def _decoder(members: frozenset[str]) -> Callable[[bytes], Mapping[str, Any]]:
    """Return what reads only these members of a record: a third of the time of reading it whole."""
    record = TypedDict("record", dict.fromkeys(members, Any), total=False)  # type: ignore[misc]
    return msgspec.json.Decoder(record).decode


def _line(text: SegmentText, offset: int) -> bytes:
    """Return the line that begins at an offset, empty where none ends or it can't be read."""
    try:
        data = text.read(offset, _FIRST_READ)
        end = data.find(b"\n")
        if end < 0:
            data = text.read(offset, LONGEST_LINE)
            end = data.find(b"\n")
    except (OSError, ValueError):
        return b""
    return data[:end] if end >= 0 else b""


def _distinct(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    last = -1
    for one in found:
        if one[0] != last:
            last = one[0]
            yield one
