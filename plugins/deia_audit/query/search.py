"""Answers a query: the index offers records, the log is read again, every line is checked against the tree.

Blocking and serialised by a lock; holds index files and segments open only while queries come (`close` gives them
back). Pages of one query share the tree size of the first, so they never shift.
"""

from __future__ import annotations

import functools
import heapq
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import chain
from typing import Any, TypedDict

import attrs
import msgspec

from deia_audit.checkpoint import Checkpoint
from deia_audit.escape import read_line
from deia_audit.layout import Layout
from deia_audit.proof import TlogProof
from deia_audit.query.build import build_elsewhere
from deia_audit.query.grammar import Cursor, Query, QueryError
from deia_audit.query.index import SegmentIndex
from deia_audit.query.sources import Elsewhere, Sources, line_at
from deia_audit.tilestore import TileNodes, TileStore
from deia_audit.tree import inclusion_proof
from deia_hardening.journal import Segment
from deia_hardening.journal.lines import parse_time

_TILES_KEPT = 2048
"""Tiles of 16 KiB that stay in memory for inclusion proofs: 32 MiB at most."""
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


class Search:
    """The search over one trail. Callable from any thread; one query at a time."""

    def __init__(
        self,
        layout: Layout,
        checkpoint: Callable[[], Checkpoint | None],
        *,
        connections: int = 128,
        elsewhere: Elsewhere = build_elsewhere,
        settle: Callable[[], object] = lambda: None,
        waits: bool = True,
    ) -> None:
        """`waits` is false where `advance` makes what indexes are missing while queries go on."""
        self._checkpoint = checkpoint
        self._settle = settle
        self._sources = Sources(layout, connections=connections, elsewhere=elsewhere, waits=waits)
        self._nodes = TileNodes(TileStore(layout.evidence), 0, limit=_TILES_KEPT)
        self._lock = threading.Lock()

    @property
    def rebuilt(self) -> int:
        """How often an index was found missing or damaged."""
        return self._sources.rebuilt

    def run(self, query: Query) -> Page:
        """Answer a query. Raises QueryError for a cursor that this log can't have given.

        `settle`, which the caller gave, is asked for a checkpoint of the newest records where proofs are wanted.
        """
        if query.proof and query.cursor is None:
            self._settle()
        with self._lock:
            try:
                return self._run(query)
            except sqlite3.DatabaseError:  # an index was damaged since it was found sound
                self._sources.distrust()
                return self._run(query)

    def advance(self) -> bool:
        """Index some of what has no index; whether more is left. For when no query waits, beside those that come."""
        with self._lock:
            more = self._sources.advance()
            segment = self._sources.unbuilt()
        if segment is None:
            return more
        built = self._sources.build(segment)
        with self._lock:
            return self._sources.built(segment, done=built) or more

    def close(self) -> None:
        """Give back every descriptor; the next query opens them again."""
        with self._lock:
            self._sources.close()

    # -- one query --

    def _run(self, query: Query) -> Page:
        segments = self._sources.segments()
        checkpoint = self._checkpoint()
        self._nodes.grow(checkpoint.head.size if checkpoint is not None else 0)
        end = self._sources.catch_up(segments)
        cursor = query.cursor
        if cursor is not None and cursor.size > end:
            raise QueryError("cursor", "the cursor is of a longer log than this one")
        size = cursor.size if cursor is not None else end
        low, high = 0, size
        if cursor is not None and not query.count:  # what is counted is what all pages show
            low, high = (0, min(cursor.last, size)) if query.newest_first else (cursor.last + 1, size)
        rows: list[Row] = []
        damaged: list[int] = []
        count = 0
        more = False
        timed = query.since is not None or query.until is not None
        decode = _decoder(query.members | {"time"} if timed else query.members)
        for seq, line in self._candidates(query, segments, low, high, size, damaged):
            record, shown = _read(decode, line)
            if not (shown or record) or not query.matches(record, parse_time(record["time"]) if timed else 0):
                continue
            if not shown:
                damaged.append(seq)
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
        pairs = list(zip(segments, bounds, strict=True)) if segments else []
        for segment, stop in reversed(pairs) if query.newest_first else pairs:
            start = max(segment.first, 0)
            if start >= high or stop <= low or start >= stop:
                continue
            lowest, highest = max(low, start) - start, min(high, stop) - start
            for number, line in self._offered(query, segment, lowest, highest):
                seq = start + number
                if self._sound(seq, line):
                    yield seq, line
                else:
                    damaged.append(seq)

    def _offered(self, query: Query, segment: Segment, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Yield number and line of what may fit in a segment, in order: what its index offers, all that none covers."""
        text = self._sources.text
        found: Iterator[tuple[int, int]] = iter(())
        index, rest = self._sources.of(segment)
        if index is not None:
            first = max(low, index.after(query.since)) if query.since is not None else low
            found = self._numbers(query, index, first, min(high, rest.first) if rest is not None else high)
        lines = ((number, line_at(text(segment), offset)) for number, offset in found)
        if rest is None:
            return lines
        first = max(low, rest.after(query.since)) if query.since is not None else low
        others = rest.offered(text(segment), first, high, newest_first=query.newest_first)
        return chain(others, lines) if query.newest_first else chain(lines, others)

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
        groups += self._worded(query, index)
        for words in query.without:
            if len(words) == 1 and (hit := index.lookup("q", words[0])) is not None:
                without.append(hit[0])
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
    def _worded(query: Query, index: SegmentIndex) -> list[tuple[int, tuple[int, ...]]]:
        """Return groups of terms of which one each must be there: all words of a single `q`, or the rarest of each."""
        found = [[index.lookup("q", word) or (0, 0) for word in words] for words in query.words]  # id, count
        if len(found) == 1:
            return [(count, (key,) if count else ()) for key, count in found[0]]
        rarest = [min(words, key=lambda hit: hit[1]) for words in found]
        there = [(key, count) for key, count in rarest if count]
        return [(sum(count for _, count in there), tuple({key for key, _ in there}))] if found else []

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


@functools.lru_cache(maxsize=128)
def _decoder(members: frozenset[str]) -> Callable[[bytes], Mapping[str, Any]]:
    """Return what reads only these members of a record: a third of the time of reading it whole."""
    record = TypedDict("record", dict.fromkeys(members, Any), total=False)  # type: ignore[misc]
    return msgspec.json.Decoder(record).decode


def _read(decode: Callable[[bytes], Mapping[str, Any]], line: bytes) -> tuple[Mapping[str, Any], bool]:
    """Return a record, and whether its line can stand in an answer."""
    try:
        return decode(line), True
    except (msgspec.DecodeError, UnicodeDecodeError):
        return read_line(line), False


def _distinct(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    last = -1
    for one in found:
        if one[0] != last:
            last = one[0]
            yield one
