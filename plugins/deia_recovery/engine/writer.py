"""Group commit: what queued while the last commit ran is committed as one group, by one thread at a time.

A write is acknowledged only after COMMIT (SQLite, WAL, synchronous=FULL) returned, each caller with its own
result. One that fails leaves nothing behind and spoils no other. The writer's own thread commits for loops; a plain
thread that waits for its result commits itself when nobody else is at it, which saves two changes of thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

from deia_recovery.engine.batch import MOST
from deia_recovery.engine.jobs import Entry, Job, Nested, Session
from deia_recovery.engine.nesting import Parts
from deia_recovery.engine.pending import Pending, resolve
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateError, StateUnavailable, TransactionEnded

if TYPE_CHECKING:
    from deia_recovery.engine.engine import Engine

_Outcome = tuple[Pending[Any], Any, BaseException | None]

logger = logging.getLogger("deia_recovery")

_TICK = 0.02
"""Seconds after which the writer looks for writes that nobody waits for."""

_BYTES = 64 << 20
"""Bytes of values after which a group takes no more: SQLite bounds a row, and the log has a group's changes in one."""


class Writer:
    """The queue of an engine and who serves it: its thread, or a plain thread that waits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: deque[Job | Entry | Session | None] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._asleep = self._deeply = False
        self._lately = False
        self._lead = threading.Lock()
        self._ahead: tuple[sqlite3.Connection, Tx] | None = None
        self._context = contextvars.Context()

    def put(self, item: Job | Entry | Session | None) -> None:
        """Queue it. It is begun when somebody waits for it (`ring`, `lead`), else within a tick."""
        self._queue.append(item)
        self._lately = True
        if self._deeply:
            self.ring()

    def ring(self) -> None:
        """Wake the writer's thread if it sleeps. Never blocks."""
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(RuntimeError):  # another thread rang at the same moment
                self._bell.release()

    def empty(self) -> bool:
        return not self._queue

    def run(self) -> None:
        """Serve until idle for the engine's idle time."""
        while True:
            if not self._queue:
                self._sleep()
            try:
                if self._next():
                    return
            except BaseException:  # a function raised SystemExit or the like; who waits for it was told
                logger.exception("a write to %s ended as no write should; the next ones go on", self._engine.database)

    def _next(self) -> bool:
        """Do what is first in the queue. Whether the thread is to end."""
        waiting = self._queue
        with self._lead:
            if not waiting:
                return self._engine.retire()
            if waiting[0] is None:
                waiting.popleft()
                return self._engine.retire(now=True)
            if isinstance(session := waiting[0], Session):
                waiting.popleft()
                self._serve(session)
            else:
                self._commit(self._gather(None))
        return False

    def _sleep(self) -> None:
        idle = self._engine.options.idle
        self._deeply, self._lately = not self._lately, False
        self._asleep = True
        if not self._queue:
            self._bell.acquire(timeout=idle if self._deeply else min(_TICK, idle))
        self._asleep = self._deeply = False

    def lead(self, pending: Pending[Any]) -> bool:
        """Commit on the calling plain thread up to `pending`; False when somebody else commits at the moment.

        Only plain entries and the caller's own write: other callers' functions run on the writer's thread.
        """
        if not self._lead.acquire(blocking=False):
            return False
        try:
            while not pending.done():
                group = self._gather(pending)
                if not group:
                    return False
                self._context.run(self._commit, group)
        finally:
            self._lead.release()
            if self._queue:
                self.ring()
        return True

    def _gather(self, mine: Pending[Any] | None) -> list[Job | Entry]:
        """The next group: what waits, as far as the commits' bounds go, up to who needs a commit of its own."""
        waiting = self._queue
        limit = self._engine.options.group
        group: list[Job | Entry] = []
        size = 0
        while waiting and len(group) < limit and size < _BYTES:
            item = waiting[0]
            if type(item) is Entry:
                size += len(item.data)
            elif not (isinstance(item, Job) and (mine is None or item.pending is mine)):
                break
            group.append(item)
            waiting.popleft()
        return group

    # -- groups ---------------------------------------------------------------------------------------------

    def _commit(self, group: list[Job | Entry]) -> None:
        engine = self._engine
        try:
            begun = time.perf_counter()
            ahead, self._ahead = self._ahead, None
            connection, tx = ahead or engine.start()
            outcomes = self._enter(connection, tx, group) or self._do(connection, group)
            tx = outcomes[0]
            engine.committed_in(time.perf_counter() - begun, len(group))
        except BaseException as error:
            problem = self._problem(error)
            resolve([(job if isinstance(job, Entry) else job.pending, None, problem) for job in group])
            if not isinstance(error, Exception):
                raise
            return
        # Who is woken now wants the interpreter, and each system call of the next start would hand it over for a whole
        # turn of a loop: so that start comes first. It gains a quarter with 64 writers, and waits for nobody.
        if self._queue and not isinstance(self._queue[0], (Session, NoneType)):
            self._ahead = engine.start_ahead()
        engine.applied(tx)
        resolve(outcomes[1])
        with _told(engine):
            listened = engine.listened()
            for job in group:
                if isinstance(job, Job):
                    if job.notes:
                        engine.tell(job.notes, job.actor)
                elif listened and job._error is None:
                    engine.tell([job.note(job)], job.actor)
        with _told(engine):
            engine.after_commit(tx)

    def _problem(self, error: BaseException) -> BaseException:
        """What callers are told of a commit that failed; the database is usable again."""
        problem = self._engine.failed(error)
        if isinstance(error, Exception):
            return problem
        return StateUnavailable(f"the commit was interrupted ({error!r}): nothing was accepted, as far as known")

    def _enter(
        self, connection: sqlite3.Connection, tx: Tx, group: Sequence[Job | Entry]
    ) -> tuple[Tx, Sequence[_Outcome]] | None:
        """Commit a group that holds plain entries only, the quickest way; None for another one."""
        engine = self._engine
        entries = [job for job in group if type(job) is Entry]
        if len(entries) != len(group) or len(group) > MOST or engine.low_on_space:
            return None
        engine.commit_entries(connection, tx, entries)
        return tx, [(entry, n, None) for n, entry in enumerate(entries, tx.begun + 1)]

    def _do(self, connection: sqlite3.Connection, group: Sequence[Job | Entry]) -> tuple[Tx, Sequence[_Outcome]]:
        engine = self._engine
        tx = engine.begin(connection)
        outcomes = self._run(connection, tx, group, guarded=False)
        if outcomes is None:
            connection.execute("ROLLBACK")
            tx = engine.begin(connection)
            outcomes = self._run(connection, tx, group, guarded=True)
        engine.commit(connection, tx)
        return tx, outcomes or ()

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
                self._rows(tx, entries, outcomes, full)
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
            self._rows(tx, entries, outcomes, full)
        return outcomes

    def _rows(self, tx: Tx, entries: list[Entry], outcomes: list[_Outcome], full: bool) -> None:
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
            connection, _ = engine.start()
            tx = engine.begin(connection)
            kept = self._steps(session, connection, tx, notes)
            if kept:
                engine.commit(connection, tx)
            else:
                connection.execute("ROLLBACK")
                engine.give_turn()
        except BaseException as error:
            problem = self._problem(error)
            session.failure = problem
            session.closed = True
            session.drain()
            doing = session.doing
            resolve([(pending, None, problem) for pending in (session.done, doing) if pending is not None])
            if not isinstance(error, Exception):
                raise
            return
        session.closed = True
        if kept:
            engine.applied(tx)
        session.drain()
        resolve([(session.done, None, None if kept else session.failure)])
        if kept:
            with _told(engine):
                if notes:
                    engine.tell(notes, session.actor)
            with _told(engine):
                engine.after_commit(tx)

    def _steps(self, session: Session, connection: sqlite3.Connection, tx: Tx, notes: list[Any]) -> bool:
        deadline = time.monotonic() + session.seconds
        parts = Parts(connection, tx, notes)
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
            if isinstance(step, Nested):
                try:
                    parts.do(step)
                except TransactionEnded as error:
                    session.failure = error
                    return False
                continue
            session.doing = step.pending
            outcomes = self._run(connection, tx, [step], guarded=True)
            session.doing = None
            notes.extend(step.notes)
            resolve(outcomes or ())


@contextlib.contextmanager
def _told(engine: Engine) -> Iterator[None]:
    """What follows a commit that was acknowledged: if it fails, that ends nothing but itself."""
    try:
        yield
    except Exception:
        logger.exception("what was committed to %s stands, and could not be told of", engine.database)


_FATAL = ("full", "I/O error", "readonly", "unable to open", "malformed", "not a database", "locked", "protocol")


def _fatal(error: sqlite3.Error) -> bool:
    """Whether the database itself failed, not this one statement."""
    return isinstance(error, sqlite3.DatabaseError) and any(word in str(error) for word in _FATAL)
