"""One state database, as one process uses it: submit writes, read, checkpoint, close when idle.

Any thread and any loop may call it. Nothing is opened before the first use; after `idle` seconds without work the
writer thread ends and every descriptor is closed. After a fork the child's engine is as never opened.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_recovery.engine.batch import commit_rows
from deia_recovery.engine.cache import Cache
from deia_recovery.engine.jobs import Entry, Job, Session
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.pending import Pending
from deia_recovery.engine.reading import Reading, decode_ops, encode_ops
from deia_recovery.engine.transaction import Tx
from deia_recovery.engine.turns import DATABASE
from deia_recovery.engine.writer import Writer
from deia_recovery.errors import StateError, StateUnavailable

T = TypeVar("T")


class Engine(Reading):
    """Durable state in one generation's folder. `tell(notes, actor)` gets what write functions noted, after commit."""

    def __init__(
        self,
        folder: Path,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        clock: Clock = SYSTEM_CLOCK,
        *,
        generation: int = 1,
    ) -> None:
        self.options = options
        self.clock = clock
        self.opener: Callable[[], None] | None = None
        """Called once, on a core-owned or the writer's thread, before anything is opened; it may call `place`."""
        self.cache = Cache(options.cache)
        self.tell: Callable[[list[Any], Any], None] = _tell_nobody
        self.listened: Callable[[], bool] = _nobody_listens
        """Whether anybody is told of plain writes at the moment: their notes are made only then."""
        self.committed: list[Callable[[Tx], None]] = []
        """Called after each commit that changed something, on the thread that committed; must be quick."""
        self.barrier: Callable[[int], None] | None = None
        """Called with the position after COMMIT and before acknowledgement (synchronous shipping)."""
        self.failure: str = ""
        """Why the last write failed; "" once one succeeded again."""
        self.groups = self.writes = 0
        self.slow_commit = 0.0
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._writer = Writer(self)
        self._reads = 0
        self.place(folder, generation)
        _engines.add(self)

    # -- writing ----------------------------------------------------------------------------------------------

    def write(
        self, function: Callable[[Tx], T], *, actor: Any = None, grows: bool = True, guarded: bool = False
    ) -> Pending[T]:
        """Run `function(tx)` in the next commit. Thread-safe; never blocks.

        `function` may be run twice (it must have no other effect) and is refused on low space when it `grows`.
        Raises through the pending: what `function` raised, or StateUnavailable; then nothing was written.
        """
        job = Job(function, actor, grows, guarded, self._writer)
        self._writer.put(job)
        if self._thread is None:
            self._start()
        return job.pending

    def enter(self, entry: Entry) -> Entry:
        """Write one plain registry row in the next commit; the entry is its own pending, of its revision."""
        writer = self._writer
        entry._writer = writer
        writer.put(entry)
        if self._thread is None:
            self._start()
        return entry

    def session(self, session: Session) -> None:
        """Queue an open transaction."""
        self._writer.put(session)
        self._writer.ring()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._writer.run, name="deia-state", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is going down
                    self._thread = None
                    raise

    def begin(self, connection: sqlite3.Connection) -> Tx:
        """Begin a commit of several statements, in this process's turn."""
        connection.execute("BEGIN IMMEDIATE")
        return self.following(connection)

    def commit(self, connection: sqlite3.Connection, tx: Tx) -> None:
        """Write down the changes and commit; durable when it returns."""
        if tx.changes:
            connection.execute(_LOG, (tx.position, tx.now, encode_ops(tx.changes)))
            self.page.position = tx.position
        connection.execute("COMMIT")
        self._done(tx)

    def commit_entries(self, connection: sqlite3.Connection, tx: Tx, group: list[Entry]) -> None:
        """Commit plain rows as one statement; durable when it returns. Revisions go on from `tx.position`."""
        at = tx.now
        rows = [(entry.store, entry.key, entry.data, n, at) for n, entry in enumerate(group, tx.position + 1)]
        tx.note_entries(rows)
        ops = encode_ops(tx.changes)
        self.page.position = tx.position
        commit_rows(connection, rows, at, ops)
        self._done(tx)

    def _done(self, tx: Tx) -> None:
        if tx.changes:
            self.stand(tx.position, tx.now)
        self.give_turn()
        self.failure = ""
        if self.barrier is not None and tx.changes:
            self.barrier(tx.position)
        self._used = time.monotonic()

    def applied(self, tx: Tx) -> None:
        if tx.changes:
            self.cache.advance(tx.begun, tx.position, tx.changes)

    def after_commit(self, tx: Tx) -> None:
        if tx.changes:
            for callback in self.committed:
                callback(tx)
            self.checkpoints.due()
        now = time.monotonic()
        if now - self._space_checked > 1.0:
            self._space_checked = now
            self._look_at_space()

    def committed_in(self, seconds: float, writes: int) -> None:
        self.groups += 1
        self.writes += writes
        self.slow_commit = max(self.slow_commit * 0.99, seconds)

    def failed(self, error: BaseException) -> BaseException:
        """After a failed commit: leave the database usable, and say what happened."""
        self._mine = -1
        connection = self.connections.writer
        try:
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass
        self.give_turn()
        if isinstance(error, StateError):
            return error
        if isinstance(error, (sqlite3.Error, OSError)):
            self.connections.drop_writer()
            self.failure = f"{type(error).__name__}: {error}"
            where = self.database
            if "full" in str(error) or getattr(error, "errno", 0) == 28:
                text = f"the disk of {where} is full: nothing was accepted; reading goes on; free space, then retry"
            elif "locked" in str(error):
                text = f"{where} was locked by another program for {self.options.busy:g} s: nothing was accepted; retry"
            else:
                text = f"{where} can't be written ({error}): nothing was accepted; look at the disk"
            return StateUnavailable(text)
        return error

    def no_room(self) -> StateUnavailable:
        return StateUnavailable(
            f"the disk of {self.database} has less than {self.options.reserve >> 20} MiB free: new entries and tasks "
            "are refused, what was accepted is kept and can be completed; free space"
        )

    def _look_at_space(self) -> None:
        try:
            free = os.statvfs(self.folder)
            self.low_on_space = free.f_bavail * free.f_frsize < self.options.reserve
        except OSError:
            self.low_on_space = True

    # -- ending -----------------------------------------------------------------------------------------------

    def retire(self, *, now: bool = False) -> bool:
        """Called by the idle writer thread, which leads: whether it may end. Closes everything then."""
        with self._lock:
            busy = self._reads or self.checkpoints.running
            if busy or (not now and time.monotonic() - self._used < self.options.idle):
                return False
            self._thread = None
            if not self._writer.empty():
                self._thread = threading.current_thread()
                return False
            self._release()
        return True

    def _release(self) -> None:
        self.connections.close()
        self._turn.close()
        self._queue_lock.close()

    def wake(self) -> None:
        """Have the writer thread run, which closes what is open when there is no more work."""
        self._used = time.monotonic()
        if self._thread is None:
            self._start()

    def close(self, *, timeout: float = 10.0) -> None:
        """Finish what is queued, then release everything. Blocks. The engine may be used again afterwards."""
        deadline = time.monotonic() + timeout
        while True:
            thread = self._thread
            if thread is None or time.monotonic() > deadline:
                break
            self._writer.put(None)
            self._writer.ring()
            thread.join(0.05)
        with self._lock:
            if self._thread is None:
                self._release()
        self._page = None
        self.cache.reset(-1)

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone and start as new."""
        _leaked.append((self.connections, self._page, self._writer))
        self.cache.forget_threads()
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._thread = None
        self._writer = Writer(self)
        self._reads = 0
        self._bind()


def _tell_nobody(notes: list[Any], actor: Any) -> None:
    """The default of `Engine.tell`."""


def _nobody_listens() -> bool:
    return False


_LOG = "INSERT INTO changes(position, at, ops) VALUES(?, ?, ?)"

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_leaked: list[Any] = []


def _after_fork() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_after_fork)

__all__ = ["DATABASE", "Engine", "decode_ops", "encode_ops"]
