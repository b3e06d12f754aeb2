"""Which generation is in force, and whose turn it is to write in it: one worker of the machine after the other.

SQLite would let workers try again and again; two file locks make a fair queue of it. Each turn looks whether another
generation was put in force meanwhile, and changes over to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deia_hardening.clock import Clock
from deia_recovery.engine.cache import Cache
from deia_recovery.engine.checkpoint import Checkpointer
from deia_recovery.engine.connections import Connections
from deia_recovery.engine.counter import PositionPage
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateUnavailable

DATABASE = "state.db"

NEWEST = "SELECT position, at FROM changes ORDER BY position DESC LIMIT 1"


class Moved(Exception):  # noqa: N818 - not a failure
    """Another generation is in force."""


class Turns:
    """The base of an engine: its folder, its connections, its place among the workers."""

    options: EngineOptions
    clock: Clock
    cache: Cache
    opener: Callable[[], None] | None
    _opening: threading.Lock
    _lock: threading.Lock
    _reads: int

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Nothing that is open is closed for want of writes meanwhile: reads, checkpoints and scrubs may take long."""
        with self._lock:
            self._reads += 1
        try:
            yield
        finally:
            with self._lock:
                self._reads -= 1

    def place(self, folder: Path, generation: int) -> None:
        """Use this generation's folder. Only while nothing is open."""
        self.folder = folder
        self.database = folder / DATABASE
        self.generation = generation
        self._bind()

    def ensure(self) -> None:
        """Run the opener if it has not been run. Blocks; raises what it raises, and tries again at the next call."""
        if self.opener is not None:
            with self._opening:
                opener = self.opener
                if opener is not None:
                    opener()
                    self.opener = None

    def _bind(self) -> None:
        self._page: PositionPage | None = None
        self._current = self.folder.parent / "current"
        self._opened_under: Any = None
        self.connections = Connections(self.database, self.options)
        self.checkpoints = Checkpointer(self)
        self._turn = FileLock(self.folder / "turn.lock")
        self._queue_lock = FileLock(self.folder / "queue.lock")
        self._turn_held = False
        self._mine = -1
        self._at = 0
        self._at_since = 0.0
        self._space_checked = -1e9
        self._used = time.monotonic()
        self.low_on_space = False

    @property
    def page(self) -> PositionPage:
        raise NotImplementedError

    def wake(self) -> None:
        """Have the writer thread run, which closes what is open when there is no more work."""
        raise NotImplementedError

    # -- the generation in force --------------------------------------------------------------------------------

    def _moved(self) -> bool:
        """Whether another generation was put in force since this one was opened."""
        return bool(_stamp(self._current) != self._opened_under)

    def _settle(self) -> None:
        """Before anything is opened: be in the generation in force, which may have changed while all was closed."""
        with self._opening:
            stamp = _stamp(self._current)
            if stamp == self._opened_under or not self.connections.closed:
                return
            from deia_recovery.engine.generation import read_current

            generation = read_current(self.folder.parent)
            if generation is not None and generation.number != self.generation:
                self.place(generation.folder, generation.number)
                self.cache.reset(-1)
            self._opened_under = stamp

    def _relocate(self) -> None:
        from deia_recovery.engine.generation import read_current

        generation = read_current(self.folder.parent)
        if generation is None:
            raise StateUnavailable(f"{self._current} is gone: nothing was written", retryable=False)
        old = self.connections
        self.place(generation.folder, generation.number)
        self.cache.reset(-1)
        old.retire()

    # -- turns ----------------------------------------------------------------------------------------------------

    def writing(self) -> sqlite3.Connection:
        """The writer's connection (for who commits)."""
        connection = self.connections.writer
        if connection is None:
            self.ensure()
            self._settle()
            connection = self.connections.open_writer()
            self.checkpoints.lay_out()
        return connection

    def start(self) -> tuple[sqlite3.Connection, Tx]:
        """This process's turn, in the generation in force: nobody else commits until `give_turn`."""
        while True:
            connection = self.writing()
            try:
                self._take_turn()
            except Moved:
                self.give_turn()
                self._relocate()
            else:
                return connection, self.following(connection)

    def start_ahead(self) -> tuple[sqlite3.Connection, Tx] | None:
        """`start`, if that needs no waiting: nobody else wants the turn, and no other generation was put in force."""
        connection = self.connections.writer
        if connection is None:
            return None
        try:
            if self._try_turn():
                return connection, self.following(connection)
        except (OSError, sqlite3.Error):
            self.give_turn()  # `start` meets it again, and says it
        return None

    def _try_turn(self) -> bool:
        queued, turn = self._queue_lock.open(), self._turn.open()
        try:
            fcntl.flock(queued, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            self._queue_lock.release()
        self._turn_held = True
        if self._moved():
            self.give_turn()
        return self._turn_held

    def following(self, connection: sqlite3.Connection) -> Tx:
        """What the next commit begins with, while it is this process's turn."""
        if self.page.cells[0] != self._mine:
            self.stand(*(connection.execute(NEWEST).fetchone() or (0, 0)))
        # a wall clock that was set back must not stop leases and delays until it has caught up
        passed = int((self.clock.monotonic() - self._at_since) * 1000)
        now = max(int(self.clock.wall() * 1000), self._at + passed)
        return Tx(connection, self._mine, now, self.generation)

    def stand(self, position: int, at: int) -> None:
        """The newest commit is this one; time goes on from its."""
        self._mine, self._at, self._at_since = position, at, self.clock.monotonic()

    def _take_turn(self) -> None:
        if not self._turn_held:
            queued, turn = self._queue_lock.open(), self._turn.open()
            fcntl.flock(queued, fcntl.LOCK_EX)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX)
            finally:
                self._queue_lock.release()
            self._turn_held = True
        if self._moved():
            raise Moved

    def give_turn(self) -> None:
        """Let the next worker write."""
        if self._turn_held:
            self._turn_held = False
            self._turn.release()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Keep every worker's writer out, from another thread than the writer's. Blocks."""
        queue_lock = FileLock(self.folder / "queue.lock")
        turn = FileLock(self.folder / "turn.lock")
        try:
            with queue_lock.held():
                turn.acquire()
            yield
        finally:
            turn.close()
            queue_lock.close()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a microsecond per commit
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
