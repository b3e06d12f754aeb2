"""One state database, as one process uses it: submit writes, read, checkpoint, close when idle.

Any thread and any loop may call it. Nothing is opened before the first use; after `idle` seconds without work the
writer thread ends and every descriptor is closed. After a fork the child's engine is as never opened.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.runtime import runtime
from deia_recovery.engine.cache import Cache
from deia_recovery.engine.checkpoint import Checkpointer
from deia_recovery.engine.connections import Connections
from deia_recovery.engine.counter import PositionPage
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.pending import Pending, resolve
from deia_recovery.engine.schema import Change
from deia_recovery.engine.transaction import Tx
from deia_recovery.engine.writer import Entry, Job, Session, Writer
from deia_recovery.errors import StateError, StateUnavailable

T = TypeVar("T")

DATABASE = "state.db"

decode_ops: Callable[[bytes], list[Change]] = msgspec.msgpack.Decoder(
    list[tuple[int, str, tuple[Any, ...], dict[str, Any]]]
).decode
encode_ops = msgspec.msgpack.Encoder().encode

_FOLLOW = 2_000
"""Foreign positions that a cache catches up with; beyond it is dropped."""


class Engine:
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
        self.listened = False
        """Whether `tell` goes to anybody: notes of plain writes are made only then."""
        self.committed: list[Callable[[Tx], None]] = []
        """Called on the writer thread after each commit that changed something; must be quick."""
        self.barrier: Callable[[int], None] | None = None
        """Called with the position after COMMIT and before acknowledgement (synchronous shipping)."""
        self.low_on_space = False
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
        self._begun = 0
        self._space_checked = -1e9
        self._used = time.monotonic()

    # -- writing ----------------------------------------------------------------------------------------------

    def write(
        self, function: Callable[[Tx], T], *, actor: Any = None, grows: bool = True, guarded: bool = False
    ) -> Pending[T]:
        """Run `function(tx)` in the next commit. Thread-safe; never blocks.

        `function` may be run twice (it must have no other effect) and is refused on low space when it `grows`.
        Raises through the pending: what `function` raised, or StateUnavailable; then nothing was written.
        """
        job = Job(function, actor, grows, guarded)
        self._writer.put(job)
        if self._thread is None:
            self._start()
        return job.pending

    def enter(self, entry: Entry) -> Entry:
        """Write one plain registry row in the next commit; the entry is its own pending, of its revision."""
        self._writer.put(entry)
        if self._thread is None:
            self._start()
        return entry

    def session(self, session: Session) -> None:
        """Queue an open transaction."""
        self._writer.put(session)
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

    def writing(self) -> sqlite3.Connection:
        """The writer's connection (writer thread only)."""
        connection = self.connections.writer
        if connection is None:
            self.ensure()
            self._settle()
            connection = self.connections.open_writer()
            self.checkpoints.lay_out()
        return connection

    def start(self) -> tuple[sqlite3.Connection, Tx]:
        """Begin a commit in the generation in force (writer thread only)."""
        while True:
            connection = self.writing()
            try:
                return connection, self.begin(connection)
            except _Moved:
                self._give_turn()
                self._relocate()

    def begin(self, connection: sqlite3.Connection) -> Tx:
        """Take this process's turn among the workers and begin."""
        if not self._turn_held:
            self._queue_lock.acquire()
            try:
                self._turn.acquire()
            finally:
                self._queue_lock.release()
            self._turn_held = True
        if self._moved():
            raise _Moved
        connection.execute("BEGIN IMMEDIATE")
        cells = self.page.cells
        if cells[0] != self._mine:
            self._mine, self._at = connection.execute(_NEWEST).fetchone() or (0, 0)
        self._begun = self._mine
        now = max(int(self.clock.wall() * 1000), self._at)
        return Tx(connection, self._mine, now, self.generation)

    def commit(self, connection: sqlite3.Connection, tx: Tx) -> None:
        """Write down the changes and commit; durable when it returns."""
        if tx.changes:
            connection.execute(_LOG, (tx.position, tx.now, encode_ops(tx.changes)))
            self.page.position = tx.position
            connection.execute("COMMIT")
            self._mine, self._at = tx.position, tx.now
        else:
            connection.execute("COMMIT")
        self._give_turn()
        self.failure = ""
        if self.barrier is not None and tx.changes:
            self.barrier(tx.position)
        self._used = time.monotonic()

    def applied(self, tx: Tx) -> None:
        if tx.changes:
            self.cache.advance(self._begun, tx.position, tx.changes)

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

    def _give_turn(self) -> None:
        if self._turn_held:
            self._turn_held = False
            self._turn.release()

    def failed(self, error: BaseException) -> BaseException:
        """After a failed commit: leave the database usable, and say what happened."""
        self._mine = -1
        connection = self.connections.writer
        try:
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass
        self._give_turn()
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

    # -- reading ----------------------------------------------------------------------------------------------

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
        with self._lock:
            self._reads += 1
        try:
            self.ensure()
            if self.connections.closed:
                self._settle()
            elif self._moved():
                self.write(lambda tx: None, grows=False).result(60.0)  # the writer's thread changes over
            _ = self.page
            if self._thread is None:
                self._start()
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
            with self._lock:
                self._reads -= 1

    def _follow(self, connection: sqlite3.Connection) -> None:
        """Bring the cache to the position that this read transaction sees."""
        newest = connection.execute(_NEWEST).fetchone()
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
        newest = connection.execute(_NEWEST).fetchone()
        self.cache.fill(key, entry, newest[0] if newest else 0)

    def position(self) -> int:
        """The newest committed position; blocks."""
        return self.read_here(lambda connection: (connection.execute(_NEWEST).fetchone() or (0, 0))[0])

    # -- ending -----------------------------------------------------------------------------------------------

    def retire(self, *, now: bool = False) -> bool:
        """Called by the idle writer thread: whether it may end. Closes everything then."""
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


class _Moved(Exception):  # noqa: N818 - not a failure
    """Another generation is in force."""


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a microsecond per commit
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _tell_nobody(notes: list[Any], actor: Any) -> None:
    """The default of `Engine.tell`."""


_NEWEST = "SELECT position, at FROM changes ORDER BY position DESC LIMIT 1"
_LOG = "INSERT INTO changes(position, at, ops) VALUES(?, ?, ?)"

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_leaked: list[Any] = []


def _after_fork() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_after_fork)
