"""Shipping committed changes to the backups between snapshots, by one holder per machine.

Each round writes what was committed since the last one as a segment, durably, before the change log may be cut. What
is shipped is known durably too: a restore that would end before it is refused.
"""

from __future__ import annotations

import sqlite3
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import msgspec

from deia_recovery.backup.segments import Entry, digest_of, read_segment, segment_name, span_of, write_segment
from deia_recovery.engine.engine import decode_ops
from deia_recovery.engine.files import FileLock, write_whole
from deia_recovery.errors import BackupError, StateError, WrongKey

if TYPE_CHECKING:
    from deia_recovery.backup.keys import KeyRing
    from deia_recovery.backup.vault import Vault
    from deia_recovery.engine.engine import Engine

_ROUND = 4 << 20
"""Bytes of changes that one segment takes at most."""


@attrs.frozen
class Shipped:
    """How far the backups reach: the last segment's end and digest."""

    store: str
    generation: int
    position: int
    at: float
    digest: str


def read_shipped(root: Path) -> Shipped | None:
    """What was shipped last, as far as this machine knows."""
    try:
        return msgspec.json.decode((root / "shipped.json").read_bytes(), type=Shipped)
    except (FileNotFoundError, msgspec.DecodeError, ValueError):
        return None


class Shipper:
    """Ships one engine's changes to one vault. Blocking; used on core-owned threads."""

    def __init__(self, engine: Engine, root: Path, store: str, vault: Vault, keys: KeyRing) -> None:
        self._engine = engine
        self._generation = engine.generation
        self._root = root
        self._store = store
        self._vault = vault
        self._keys = keys
        self._lock = FileLock(root / "ship.lock")
        self._mine = threading.Lock()
        self._last: Shipped | None = None
        self.shipped_at = 0.0
        self.problem = ""

    @property
    def engine_generation(self) -> int:
        """The generation whose changes this ships."""
        return self._generation

    @property
    def position(self) -> int:
        """How far it has shipped, -1 before it knows."""
        return -1 if self._last is None else self._last.position

    def run(self, *, wait: bool = False) -> Shipped | None:
        """Ship what is new. None when another worker is at it. Raises OSError, StateUnavailable.

        A gap (the change log was cut before it was shipped) is told by StateError, once; shipping then goes on
        behind it, and only a new snapshot joins.
        """
        with self._mine:
            return self._run(wait)

    def _run(self, wait: bool) -> Shipped | None:
        if wait:
            self._lock.acquire()
        elif not self._lock.try_acquire():
            self._lock.close()
            return None
        try:
            last = self._where()
            if self._engine.peek() == last.position and self._last is not None:
                return last
            while True:
                entries, gap = self._engine.read_here(partial(_entries_after, position=last.position))
                if gap is not None:
                    self._last = attrs.evolve(last, position=gap, digest="")
                    raise StateError(
                        f"changes {last.position + 1} to {gap} were cut from the log before they were shipped; "
                        "a new snapshot closes the gap"
                    )
                if not entries:
                    break
                last = self._ship(last, entries)
            self._last = last
            return last
        finally:
            self._lock.close()

    def _ship(self, last: Shipped, entries: list[Entry]) -> Shipped:
        data = write_segment(self._store, self._engine.generation, last.digest, last.position, entries, self._keys)
        end, at = entries[-1][0], entries[-1][1]
        self._vault.replace(segment_name(self._engine.generation, last.position, end), data)
        shipped = Shipped(self._store, self._engine.generation, end, at / 1000, digest_of(data))
        write_whole(self._root / "shipped.json", msgspec.json.encode(shipped))
        self._last = shipped
        return shipped

    def _where(self) -> Shipped:
        """Where to go on: the durable note, checked against what is in the vault."""
        generation = self._engine.generation
        noted = read_shipped(self._root)
        if self._last is not None and (noted is None or noted.position <= self._last.position):
            return self._last
        best = Shipped(self._store, generation, self._begin(), 0.0, "")
        names = [(span, name) for name in self._vault.list(f"segments/g{generation:06d}/") if (span := span_of(name))]
        for span, name in sorted(names, key=lambda one: one[0][2], reverse=True):
            try:
                data = self._vault.get(name)
                segment = read_segment(data, self._keys, name)
            except (BackupError, WrongKey, OSError):
                continue
            if segment.head.store == self._store and segment.head.last >= best.position:
                best = Shipped(self._store, generation, span[2], segment.head.last_at / 1000, segment.digest)
                break
        return best

    def _begin(self) -> int:
        """The position at which this generation begins, or the oldest that its change log still leads on from."""

        def read(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT position, ops FROM changes ORDER BY position LIMIT 1").fetchone()
            if row is None:
                return 0
            return int(row[0]) - len(decode_ops(row[1]))

        return self._engine.read_here(read)

    def trim(self) -> None:
        """Cut the change log behind what was shipped; some stays, for other workers' caches."""
        last = self._last
        if last is None or last.generation != self._engine.generation:
            return
        before = last.position - self._engine.options.keep_changes
        if before > 0:
            newest = self._engine.peek()
            limit = min(before, newest - 1)
            self._engine.write(
                lambda tx: tx.connection.execute("DELETE FROM changes WHERE position <= ?", (limit,)) and None,
                grows=False,
            ).result(30.0)


def _entries_after(connection: sqlite3.Connection, position: int) -> tuple[list[Entry], int | None]:
    """The next commits; and, if the log begins behind `position`, where it begins."""
    found: list[Entry] = []
    size = 0
    rows = connection.execute("SELECT position, at, ops FROM changes WHERE position > ? ORDER BY position", (position,))
    for end, at, blob in rows:
        if not found:
            begin = end - len(decode_ops(blob))
            if begin > position:
                return [], begin
        found.append((end, at, blob))
        size += len(blob)
        if size >= _ROUND:
            break
    return found, None
