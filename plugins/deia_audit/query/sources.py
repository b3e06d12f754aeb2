"""The files that a search reads: segments, their indexes, and the lines that no index covers yet.

Blocking; the search's lock is held, but for `build`. Descriptors are held open while queries come, `close` gives them
back.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deia_audit.layout import Layout
from deia_audit.query.index import IndexDamaged, SegmentIndex, build, index_path
from deia_audit.query.soundness import distrust, index_key
from deia_audit.query.unindexed import Lines, Live, lines_in
from deia_hardening.journal import JournalReader, Segment
from deia_hardening.journal.lines import LONGEST_LINE
from deia_hardening.journal.reader import SegmentText

Elsewhere = Callable[[Segment, Path, Path], bool]
"""Builds the index of a segment, in a folder, under the key in another; whether it did."""
_SETTLED_NS = 100_000_000
"""Nanoseconds after which a folder's time of change is believed: file systems stamp in steps of some milliseconds."""
_UNINDEXED_KEPT = 16
"""Segments without an index whose lines' places are remembered, 8 bytes each."""
_FIRST_READ = 1536


class Sources:
    """What there is to read. `waits` is false where `advance` and `build` make missing indexes beside the queries."""

    def __init__(self, layout: Layout, *, connections: int, elsewhere: Elsewhere, waits: bool) -> None:
        self._layout = layout
        self._connections = connections
        self._elsewhere = elsewhere
        self._waits = waits
        self._unbuilt: OrderedDict[int, Segment] = OrderedDict()
        self._unindexed: OrderedDict[int, Lines] = OrderedDict()
        self._reader = JournalReader(layout.log)
        self._indexes: OrderedDict[int, SegmentIndex] = OrderedDict()
        self._texts: OrderedDict[int, SegmentText] = OrderedDict()
        self.live: Live | None = None
        self._listed: list[Segment] = []
        self._listed_at = -1
        self._at_rest = (-1, 0)
        """The number of the newest segment, where it is sealed, and how many records the log then holds."""
        self.rebuilt = 0

    def close(self) -> None:
        """Give back every descriptor."""
        for index in self._indexes.values():
            index.close()
        for text in self._texts.values():
            text.close()
        self._indexes.clear()
        self._texts.clear()
        self._unindexed.clear()
        self._unbuilt.clear()
        if self.live is not None:
            self.live.index.close()
            self.live = None

    def distrust(self) -> None:
        """Have every index read whole before it is used again."""
        for segment in self.segments():
            distrust(index_path(self._layout.index, segment))
        for index in self._indexes.values():
            index.close()
        self._indexes.clear()

    # -- what has no index --

    def advance(self) -> bool:
        """Index some of the live segment; whether more is left."""
        live = self.live
        return live is not None and live.advance(partial(line_at, self.text(live.segment)))

    def unbuilt(self) -> Segment | None:
        """Return a sealed segment that a query had no index of."""
        return next(iter(self._unbuilt.values()), None)

    def build(self, segment: Segment) -> bool:
        """Build its index; takes seconds, and touches nothing of this object."""
        return self._elsewhere(segment, self._layout.index, self._layout.keys)

    def built(self, segment: Segment, *, done: bool) -> bool:
        """Take note of a build; whether there are others to make."""
        self._unbuilt.pop(segment.number, None)
        if done:
            self._unindexed.pop(segment.number, None)
        return bool(self._unbuilt)

    # -- reading --

    def of(self, segment: Segment) -> tuple[SegmentIndex | None, Lines | None]:
        """Return a segment's index and the lines that it does not cover, either where there is one."""
        live = self.live
        if segment.live and live is not None:
            return live.index, live.rest
        index = self._index(segment)
        return index, None if index is not None else self._lines(segment)

    def segments(self) -> list[Segment]:
        """Return the segments; listing a hundred costs a millisecond, so it is done when their folder has changed."""
        try:
            changed = self._layout.log.parent.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if changed != self._listed_at:
            self._listed = self._reader.segments()
            settled = time.time_ns() - changed > _SETTLED_NS  # else a change within the clock's grain would be missed
            self._listed_at = changed if settled else -1
        return self._listed

    def _index(self, segment: Segment) -> SegmentIndex | None:
        """Return a sealed segment's index; None where there is none (yet)."""
        index = self._indexes.get(segment.number)
        if index is None:
            index = self._open_index(segment)
            if index is None:
                return None
            self._indexes[segment.number] = index
            while len(self._indexes) > self._connections:
                self._indexes.popitem(last=False)[1].close()
        else:
            self._indexes.move_to_end(segment.number)
        return index

    def _open_index(self, segment: Segment) -> SegmentIndex | None:
        key = index_key(self._layout.keys)
        if key is None:
            return None
        path = index_path(self._layout.index, segment)
        try:
            return SegmentIndex.open(path, segment.first, key)
        except IndexDamaged:
            self.rebuilt += 1
        if not self._waits:
            self._unbuilt[segment.number] = segment
            return None
        try:
            for _try in range(3):  # the segment may be compressed, and so renamed, at this very moment
                if self._elsewhere(segment, self._layout.index, self._layout.keys):
                    break
                try:
                    build(segment, self._layout.index, self._layout.keys)
                    break
                except FileNotFoundError:
                    segment = self._listed_again(segment)
            return SegmentIndex.open(path, segment.first, key)
        except (OSError, IndexDamaged):  # a home that is only read
            return None

    def _lines(self, segment: Segment) -> Lines:
        """Return the lines of a segment that has no index."""
        lines = self._unindexed.get(segment.number)
        if lines is None:
            lines = self._unindexed[segment.number] = lines_in(self.text(segment))
            while len(self._unindexed) > _UNINDEXED_KEPT:
                self._unindexed.popitem(last=False)
        return lines

    def _listed_again(self, segment: Segment) -> Segment:
        return next((one for one in self._reader.segments() if one.number == segment.number), segment)

    def text(self, segment: Segment) -> SegmentText:
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

    def catch_up(self, segments: list[Segment]) -> int:
        """Index what came into the live segment, and return how many records the log holds."""
        if not segments:
            return 0
        segment = segments[-1]
        live = self.live
        if live is not None and (not segment.live or live.segment.number != segment.number):
            live.index.close()
            stale = self._texts.pop(live.segment.number, None)
            if stale is not None:
                stale.close()
            live = self.live = None
        if not segment.live:
            if self._at_rest[0] != segment.number:
                last = self._reader.last()
                self._at_rest = (segment.number, last.seq + 1 if last is not None else 0)
            return self._at_rest[1]
        if live is None:
            live = self.live = Live.of(segment)
        text = self.text(segment)
        live.catch_up(text)
        if live.rest.stop > live.rest.first:
            live.advance(partial(line_at, text))
        return live.end


def line_at(text: SegmentText, offset: int) -> bytes:
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
