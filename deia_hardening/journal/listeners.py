"""Who is told on the writer's thread what was written, synced and sealed: audit's tree and index hang on it.

A listener that raises is counted and shown by `health()`; it never harms the journal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from deia_hardening.journal.lines import leaf_hash
from deia_hardening.journal.segments import Segment


@attrs.frozen
class Batch:
    """Lines that were written together.

    `first` is the seq of `lines[0]`, which begins at byte `offset` of segment number `segment`; lines are without
    their newline, `leaves` their 32-byte RFC 9162 leaf hashes. `own` is False for what another process wrote;
    such a batch may hold lines of an earlier segment, and then its `offset` is that of its first line.
    """

    first: int
    lines: list[bytes]
    leaves: list[bytes]
    offset: int
    segment: int
    own: bool


class Listeners:
    """The callbacks of one journal. Registered from any thread, called by the writer."""

    def __init__(self) -> None:
        self._written: list[Callable[[Batch], None]] = []
        self._synced: list[Callable[[int], None]] = []
        self._sealed: list[Callable[[Segment], None]] = []
        self.failures = 0
        self.last_failure = ""

    def __bool__(self) -> bool:
        return bool(self._written)

    def add(
        self,
        written: Callable[[Batch], None],
        synced: Callable[[int], None] | None,
        sealed: Callable[[Segment], None] | None,
    ) -> None:
        self._written = [*self._written, written]
        if synced is not None:
            self._synced = [*self._synced, synced]
        if sealed is not None:
            self._sealed = [*self._sealed, sealed]

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.failures += 1
            self.last_failure = f"{getattr(callback, '__qualname__', callback)}: {type(error).__name__}: {error}"

    def written(self, batch: Batch) -> None:
        for callback in self._written:
            self._call(callback, batch)

    def synced(self, through: int) -> None:
        for callback in self._synced:
            self._call(callback, through)

    def sealed(self, path: Path) -> None:
        if self._sealed:
            from deia_hardening.journal.segments import segment_at

            segment = segment_at(path)
            for callback in self._sealed:
                self._call(callback, segment)

    def foreign(self, path: Path, start: int, end: int, offset: int, data: bytes, segment: int) -> None:
        """Tell of records `start` to `end` - 1 of another process: `data`, or what the files hold of them."""
        if offset >= 0:
            lines = data[:-1].split(b"\n")
            self.written(Batch(start, lines, [leaf_hash(line) for line in lines], offset, segment, False))
            return
        from deia_hardening.journal.reader import JournalReader

        try:
            batch: list[bytes] = []
            where = (0, 0)
            for record in JournalReader(path).records(start, end):
                if batch and (record.segment != where[0] or len(batch) >= 4096):
                    self._foreign_lines(start, batch, where)
                    start += len(batch)
                    batch = []
                if not batch:
                    where = (record.segment, record.offset)
                batch.append(record.line)
            if batch:
                self._foreign_lines(start, batch, where)
        except Exception as error:
            self.failures += 1
            self.last_failure = f"reading what another process wrote: {error}"

    def _foreign_lines(self, start: int, lines: list[bytes], where: tuple[int, int]) -> None:
        leaves = [leaf_hash(line) for line in lines]
        self.written(Batch(start, lines, leaves, where[1], where[0], False))
