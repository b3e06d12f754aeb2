"""The writer thread: takes what queued while the last commit ran, and commits it as one group.

A write is acknowledged only after COMMIT (SQLite, WAL, synchronous=FULL) returned, each caller with its own
result. One that fails leaves nothing behind and spoils no other. The thread and the connection exist while there
is work; an idle engine holds neither.
"""

from __future__ import annotations

import queue
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from deia_recovery.engine.pending import Pending, resolve
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateError, TransactionEnded

if TYPE_CHECKING:
    from deia_recovery.engine.engine import Engine

T = TypeVar("T")

_Outcome = tuple[Pending[Any], Any, BaseException | None]


class Job:
    """One write: a function of `Tx` that may be run twice (it has no other effect)."""

    __slots__ = ("actor", "function", "grows", "guarded", "notes", "pending")

    def __init__(self, function: Callable[[Tx], Any], actor: Any, grows: bool, guarded: bool) -> None:
        self.function = function
        self.actor = actor
        self.grows = grows
        self.guarded = guarded
        self.pending: Pending[Any] = Pending()
        self.notes: list[Any] = []


class Entry(Pending[int]):
    """One plain registry write, the most frequent there is: request and result in one object.

    Many of them become one call of SQLite. `note` makes what is told after the commit.
    """

    __slots__ = ("actor", "data", "key", "note", "store")

    def __init__(self, store: str, key: str, data: bytes, actor: Any, note: Any) -> None:
        self._done = False
        self._error = None
        self._waiters = None
        self._convert = None
        self.store = store
        self.key = key
        self.data = data
        self.actor = actor
        self.note = note


class Session:
    """An open transaction: its steps come one by one from the caller, while the writer waits for it."""

    def __init__(self, actor: Any, seconds: float) -> None:
        self.actor = actor
        self.seconds = seconds
        self.steps: queue.SimpleQueue[Job | str] = queue.SimpleQueue()
        self.done: Pending[None] = Pending()
        self.closed = False
        self.failure: BaseException | None = None

    def submit(self, function: Callable[[Tx], Any], *, grows: bool) -> Pending[Any]:
        job = Job(function, self.actor, grows, True)
        if self.closed:
            resolve(
                [
                    (
                        job.pending,
                        None,
                        self.failure or TransactionEnded("the transaction has ended; nothing of it was kept"),
                    )
                ]
            )
        else:
            self.steps.put(job)
            if self.over():
                self.drain()
        return job.pending

    def over(self) -> bool:
        return self.closed

    def drain(self) -> None:
        """Refuse the steps that came too late."""
        error = self.failure or TransactionEnded("the transaction has ended")
        while True:
            try:
                step = self.steps.get_nowait()
            except queue.Empty:
                return
            if isinstance(step, Job):
                resolve([(step.pending, None, error)])


class Writer:
    """Runs on one thread. `Engine` starts it and gives it connections."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[Job | Entry | Session | None] = queue.SimpleQueue()
        self._held: Job | Entry | Session | None = None

    def put(self, item: Job | Entry | Session | None) -> None:
        self._queue.put(item)

    def empty(self) -> bool:
        return self._queue.empty() and self._held is None

    def run(self) -> None:
        """Serve until idle for the engine's idle time."""
        engine = self._engine
        while True:
            try:
                item = self._held or self._queue.get(timeout=engine.options.idle)
            except queue.Empty:
                if engine.retire():
                    return
                continue
            self._held = None
            if item is None:
                if engine.retire(now=True):
                    return
            elif isinstance(item, Session):
                self._serve(item)
            else:
                self._commit(self._gather(item))

    def _gather(self, first: Job | Entry) -> list[Job | Entry]:
        group = [first]
        get = self._queue.get_nowait
        limit = self._engine.options.group
        try:
            while len(group) < limit:
                item = get()
                if isinstance(item, Session):
                    self._held = item
                    break
                if item is not None:
                    group.append(item)
        except queue.Empty:
            pass
        return group

    # -- groups ---------------------------------------------------------------------------------------------

    def _commit(self, group: list[Job | Entry]) -> None:
        engine = self._engine
        try:
            begun = time.perf_counter()
            connection, tx = engine.start()
            outcomes = self._run(connection, tx, group, guarded=False)
            if outcomes is None:
                connection.execute("ROLLBACK")
                tx = engine.begin(connection)
                outcomes = self._run(connection, tx, group, guarded=True)
            engine.commit(connection, tx)
            engine.committed_in(time.perf_counter() - begun, len(group))
        except BaseException as error:
            problem = engine.failed(error)
            resolve([(job if isinstance(job, Entry) else job.pending, None, problem) for job in group])
            if not isinstance(error, Exception):
                raise
            return
        engine.applied(tx)
        resolve(outcomes or ())
        if engine.listened:
            for job in group:
                if isinstance(job, Entry):
                    if job._error is None:
                        engine.tell([job.note(job)], job.actor)
                elif job.notes:
                    engine.tell(job.notes, job.actor)
        engine.after_commit(tx)

    def _run(
        self, connection: sqlite3.Connection, tx: Tx, group: Sequence[Job | Entry], *, guarded: bool
    ) -> list[_Outcome] | None:
        outcomes: list[_Outcome] = []
        full = self._engine.low_on_space
        entries: list[Entry] = []
        for job in group:
            if isinstance(job, Entry):
                entries.append(job)
                continue
            if entries:
                self._enter(tx, entries, outcomes, full)
                entries = []
            if full and job.grows:
                outcomes.append((job.pending, None, self._engine.no_room()))
                continue
            tx.notes = []
            before = len(tx.changes)
            position = tx.position
            guard = guarded or job.guarded
            if guard:
                connection.execute("SAVEPOINT job")
            try:
                value = job.function(tx)
            except sqlite3.Error as error:
                if _fatal(error) or not connection.in_transaction:
                    raise
                if not self._undo(connection, tx, before, position, guard):
                    return None
                outcomes.append((job.pending, None, StateError(f"the write was refused by the database: {error}")))
            except Exception as error:
                if (len(tx.changes) != before or guard) and not self._undo(connection, tx, before, position, guard):
                    return None
                outcomes.append((job.pending, None, error))
            else:
                if guard:
                    connection.execute("RELEASE job")
                job.notes = tx.notes
                outcomes.append((job.pending, value, None))
        if entries:
            self._enter(tx, entries, outcomes, full)
        return outcomes

    def _enter(self, tx: Tx, entries: list[Entry], outcomes: list[_Outcome], full: bool) -> None:
        if full:
            error = self._engine.no_room()
            outcomes.extend([(entry, None, error) for entry in entries])
            return
        at, first = tx.now, tx.position + 1
        tx.put_entries([(e.store, e.key, e.data, n, at) for n, e in enumerate(entries, first)])
        outcomes.extend([(entry, n, None) for n, entry in enumerate(entries, first)])

    def _undo(self, connection: sqlite3.Connection, tx: Tx, before: int, position: int, guard: bool) -> bool:
        if not guard:
            return False
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        del tx.changes[before:]
        tx.position = position
        return True

    # -- sessions -------------------------------------------------------------------------------------------

    def _serve(self, session: Session) -> None:
        engine = self._engine
        notes: list[Any] = []
        try:
            connection, tx = engine.start()
            kept = self._steps(session, connection, tx, notes)
            if kept:
                engine.commit(connection, tx)
            else:
                connection.execute("ROLLBACK")
        except BaseException as error:
            problem = engine.failed(error)
            session.failure = problem
            session.closed = True
            session.drain()
            resolve([(session.done, None, problem)])
            if not isinstance(error, Exception):
                raise
            return
        session.closed = True
        if kept:
            engine.applied(tx)
        session.drain()
        resolve([(session.done, None, None if kept else session.failure)])
        if kept:
            if notes:
                engine.tell(notes, session.actor)
            engine.after_commit(tx)

    def _steps(self, session: Session, connection: sqlite3.Connection, tx: Tx, notes: list[Any]) -> bool:
        deadline = time.monotonic() + session.seconds
        while True:
            try:
                step = session.steps.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                session.failure = TransactionEnded(
                    f"the transaction was open for more than {session.seconds:g} s and was rolled back, since every "
                    "other writer waits for it; keep network calls and long work outside of it"
                )
                return False
            if isinstance(step, str):
                return step == "commit"
            outcomes = self._run(connection, tx, [step], guarded=True)
            notes.extend(step.notes)
            resolve(outcomes or ())


_FATAL = ("full", "I/O error", "readonly", "unable to open", "malformed", "not a database", "locked", "protocol")


def _fatal(error: sqlite3.Error) -> bool:
    """Whether the database itself failed, not this one statement."""
    return isinstance(error, sqlite3.DatabaseError) and any(word in str(error) for word in _FATAL)
