"""How an engine is read: from memory where the mapped position says that memory is true, else from SQLite."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from deia_hardening.runtime import runtime
from deia_recovery.engine.counter import PositionPage
from deia_recovery.engine.pending import Pending, resolve
from deia_recovery.engine.schema import Change
from deia_recovery.engine.transaction import Tx
from deia_recovery.engine.turns import NEWEST, Turns
from deia_recovery.errors import StateUnavailable

T = TypeVar("T")

decode_ops: Callable[[bytes], list[Change]] = msgspec.msgpack.Decoder(
    list[tuple[int, str, tuple[Any, ...], dict[str, Any]]]
).decode
encode_ops = msgspec.msgpack.Encoder().encode

_FOLLOW = 2_000
"""Foreign positions that a cache catches up with; beyond it is dropped."""


class Reading(Turns):
    """The reading half of an engine. Thread-safe."""

    _thread: threading.Thread | None

    def write(
        self, function: Callable[[Tx], T], *, actor: Any = None, grows: bool = True, guarded: bool = False
    ) -> Pending[T]:
        raise NotImplementedError

    @property
    def page(self) -> PositionPage:
        page = self._page
        if page is None:
            with self._lock:
                page = self._page
                if page is None:
                    page = PositionPage(self.folder / "position")
                    self._page = page
        return page

    def peek(self) -> int:
        """The newest position as far as the mapped page tells, -1 before anything was opened. Never blocks."""
        page = self._page
        return -1 if page is None else page.cells[0]

    def cached(self, key: tuple[str, str]) -> Any:
        """The registry entry if memory has the committed one, else None. Never blocks; safe on any loop."""
        page = self._page
        cache = self.cache
        if page is None or page.cells[0] != cache.position:
            return None
        return cache.entries.get(key)

    def read(self, function: Callable[[sqlite3.Connection], T]) -> Pending[T]:
        """Run `function(connection)` in one read transaction on a core-owned thread."""
        pending: Pending[T] = Pending()

        def work() -> None:
            try:
                value = self.read_here(function)
            except Exception as error:
                resolve([(pending, None, error)])
            except BaseException as error:
                resolve([(pending, None, error)])
                raise
            else:
                resolve([(pending, value, None)])

        runtime().threads.submit(work)
        return pending

    def read_here(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """The same on the calling thread; it blocks."""
        with self.kept_open():
            try:
                self.ensure()
                if self.connections.closed:
                    self._settle()
                elif self._moved():
                    self.write(_nothing, grows=False).result(60.0)  # who commits changes over
                _ = self.page
                if self._thread is None:
                    self.wake()
                with self.connections.reader() as connection:
                    connection.execute("BEGIN")
                    try:
                        self._follow(connection)
                        return function(connection)
                    finally:
                        connection.execute("COMMIT")
            except (sqlite3.OperationalError, sqlite3.DatabaseError, OSError) as error:
                raise StateUnavailable(f"{self.database} can't be read ({error}); nothing was changed") from error
            finally:
                self._used = time.monotonic()

    def _follow(self, connection: sqlite3.Connection) -> None:
        """Bring the cache to the position that this read transaction sees."""
        newest = connection.execute(NEWEST).fetchone()
        position = newest[0] if newest else 0
        cache = self.cache
        start = cache.position
        if start == position:
            return
        if 0 <= start < position and position - start <= _FOLLOW:
            rows = connection.execute(
                "SELECT position, ops FROM changes WHERE position > ? ORDER BY position", (start,)
            )
            for end, blob in rows:
                ops = decode_ops(blob)
                if end - len(ops) != start:
                    break
                cache.advance(start, end, ops)
                start = end
            else:
                return
        if start < position:
            cache.reset(position)

    def fill(self, connection: sqlite3.Connection, key: tuple[str, str], entry: tuple[bytes | None, int]) -> None:
        """Remember what a read function found, if the cache stands where it read."""
        newest = connection.execute(NEWEST).fetchone()
        self.cache.fill(key, entry, newest[0] if newest else 0)

    def position(self) -> int:
        """The newest committed position; blocks."""
        return self.read_here(lambda connection: (connection.execute(NEWEST).fetchone() or (0, 0))[0])


def _nothing(tx: Tx) -> None:
    """A write that changes nothing."""
