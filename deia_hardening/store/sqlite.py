"""The store of one machine: a SQLite file (WAL, synchronous=FULL) shared by the workers of a home.

Concurrent writes of a process share one commit (the first to get the lock commits for all that wait). Writers
and checkpoints of all processes exclude each other through a lock file, because SQLite before 3.51.3 can corrupt
a WAL that is written and checkpointed at once (sqlite.org/wal.html, "the WAL-reset bug"). What was acknowledged
is on disk; a damaged file is set aside, never repaired in place, and an empty one takes its place.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.store import fork
from deia_hardening.store.base import (
    Change,
    Entry,
    Grant,
    Rebuilt,
    Revisions,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    WatchExpired,
    Write,
    check_key,
    check_ttl,
    check_write,
    prefix_end,
)
from deia_hardening.store.derived import Derived
from deia_hardening.store.epoch import HomePage
from deia_hardening.store.filesystem import boot_id
from deia_hardening.store.idle import reaper
from deia_hardening.store.mirror import Fields, Mirror
from deia_hardening.store.settings import StoreSettings
from deia_hardening.store.sqlite_file import Opened, Trust, explain, fold, open_file, replace_copy, set_aside
from deia_hardening.store.transaction import Transaction

T = TypeVar("T")
Rows: TypeAlias = list[Any]

_FIXED_IN: Final = (3, 51, 3)
_MISTAKES: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)
"""What SQLite raises for a value that it can't take; anything else is about the file."""
_TOLD_FOR: Final = 86_400.0
"""Seconds for which health tells of a rebuilt store."""


class _Job:
    """One caller's part of a commit."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[Transaction], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class SqliteStore(Derived):
    """A `Backend` on one file. Every method may block on the disk; call it from any thread, also after fork.

    Nothing is opened before the first use, and the connections close again after `settings.idle_close`.
    """

    def __init__(
        self,
        path: Path,
        page: HomePage | None = None,
        settings: StoreSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self._page = page
        self._mirror = Mirror(page)
        self._settings = settings or StoreSettings()
        self._clock = clock
        self._notes: dict[str, str] = {}
        self._reset()
        fork.stores.add(self)

    def _reset(self) -> None:
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Job] = []
        self._writer: Opened | None = None
        self._reader: Opened | None = None
        self._used = 0.0
        self._suspect = False
        self._sync_failed = False
        self._checked = False
        self._mirror.forget()

    # ---- reading

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None. Raises StoreError."""
        check_key(key)
        rows = self._read("SELECT value, revision FROM entries WHERE key = ? AND value IS NOT NULL", key)
        return Entry(*rows[0]) if rows else None

    def list(self, prefix: str) -> list[tuple[str, Entry]]:
        """Every key that starts with `prefix` ("" for all), in order. Raises StoreError."""
        rows = self._read(
            "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key",
            prefix,
            _end(prefix),
        )
        return [(key, Entry(value, revision)) for key, value, revision in rows]

    def revision(self) -> int:
        """The newest revision of the store."""
        return int(self._read("SELECT value FROM meta WHERE name = 'revision'")[0][0])

    def changes(self, prefix: str, since: int, limit: int) -> Sequence[Change]:
        """What changed after revision `since`, oldest first. Raises WatchExpired when deletions were forgotten."""
        # One statement, one snapshot: a purge between two could hide a deletion.
        rows = self._read(
            "SELECT key, value, revision, (SELECT value FROM meta WHERE name = 'horizon') FROM entries WHERE "
            "revision > ? AND key >= ? AND key < ? AND (value IS NOT NULL OR ? > 0) ORDER BY revision LIMIT ?",
            since,
            prefix,
            _end(prefix),
            since,
            limit,
        )
        horizon = rows[0][3] if rows else self._read("SELECT value FROM meta WHERE name = 'horizon'")[0][0]
        if 0 < since < int(horizon):
            raise WatchExpired(
                f"a watch of '{prefix}' is older than the oldest deletion that is remembered; list again"
            )
        return [
            Change(key, None if value is None else Entry(value, revision), revision) for key, value, revision, _ in rows
        ]

    def rebuilt(self) -> Rebuilt | None:
        """When and why this file was made to replace a damaged one, or None."""
        rows = self._read("SELECT value FROM meta WHERE name = 'rebuilt'")
        return msgspec.json.decode(rows[0][0], type=Rebuilt) if rows else None

    def identity(self) -> str:
        """The identity of the file: another one after a rebuild."""
        return str(self._read("SELECT value FROM meta WHERE name = 'identity'")[0][0])

    def stamp(self) -> object:
        """Inode, size and times of the file and its log: costs three microseconds and no connection."""
        try:
            file = self.path.stat()
        except OSError:
            return ()
        log = 0
        with contextlib.suppress(OSError):
            log = Path(f"{self.path}-wal").stat().st_size
        return file.st_ino, file.st_size, file.st_mtime_ns, log

    def poll_interval(self) -> float:
        return self._settings.recheck_interval

    # ---- writing

    def apply(self, writes: Sequence[Write]) -> Revisions:
        """All writes in one commit, or none. Returns each revision; 0 for the deletion of what was not there."""
        checked = [check_write(write) for write in writes]
        return self._commit(lambda transaction: transaction.apply(checked))

    # ---- leases

    def lease_take(self, name: str, ttl: float, holder: str) -> Grant | None:
        """Take the lease, or None when somebody holds it. `ttl` in seconds."""
        check_key(name)
        check_ttl(ttl)
        boot, now = boot_id(), self._clock.monotonic
        # The time is taken when it is this commit's turn: one taken before waiting would call a lease dead that
        # another process took meanwhile.
        return self._commit(lambda transaction: transaction.lease_take(name, ttl, holder, now(), boot))

    def lease_renew(self, grant: Grant, ttl: float) -> bool:
        """Extend a lease; False when it was lost."""
        boot, now = boot_id(), self._clock.monotonic
        return self._commit(lambda transaction: transaction.lease_renew(grant, ttl, now(), boot))

    def lease_release(self, grant: Grant) -> None:
        """Give a lease back; harmless when it was lost."""
        self._commit(lambda transaction: transaction.lease_release(grant))

    # ---- opening and closing

    def start(self) -> None:
        """Open the file, check it, and show its `page/` keys on the page. Raises StoreError."""
        self._commit(lambda transaction: None)

    def close(self) -> None:
        """Close the connections. The next use opens them again."""
        with self._read_lock:
            self._drop(reader=True)
        with self._write_lock:
            self._drop(writer=True)

    def close_if_idle(self) -> float | None:
        """For the reaper: close when unused; seconds until to ask again, or None when closed."""
        left = self._used + self._settings.idle_close - time.monotonic()
        if left > 0:
            return left
        # A lock that is taken means work: ask again.
        for lock, which in ((self._read_lock, "reader"), (self._write_lock, "writer")):
            if not lock.acquire(blocking=False):
                return 0.1
            try:
                self._drop(**{which: True})
            finally:
                lock.release()
        return None

    def health(self) -> Sequence[str]:
        """What is wrong or worth knowing, in sentences; empty when nothing is."""
        return list(self._notes.values())

    def _drop(self, *, reader: bool = False, writer: bool = False) -> None:
        """Close connections; the caller holds their locks. The last one to close folds the log into the file."""
        if reader and self._reader is not None:
            opened, self._reader = self._reader, None
            opened.close()
        if writer and self._writer is not None:
            opened, self._writer = self._writer, None
            opened.close()

    # ---- fork

    def connection_locks(self) -> tuple[tuple[threading.Lock, str, float], ...]:
        timeout = float(self._settings.busy_timeout)
        found = ((self._read_lock, "reader", self._reader), (self._write_lock, "writer", self._writer))
        return tuple((lock, name, timeout) for lock, name, opened in found if opened is not None or lock.locked())

    def drop_connection(self, name: str) -> None:
        self._drop(**{name: True})

    def forget_connections(self) -> tuple[Opened, ...]:
        left = tuple(opened for opened in (self._reader, self._writer) if opened is not None)
        self._reset()
        return left

    # ---- the paths that the methods above share

    def _open(self) -> Opened:
        check = self._suspect or not self._checked
        opened = open_file(self.path, self._settings, self._clock, check=check, above=self._mirror.highest_seen)
        self._suspect, self._checked = False, True
        self._tell_rebuilt(opened.rebuilt)
        if sqlite3.sqlite_version_info < _FIXED_IN:
            self._notes["sqlite"] = (
                f"SQLite {sqlite3.sqlite_version} can corrupt a file that is written and checkpointed at once "
                "(fixed in 3.51.3): this package's processes exclude each other, no other program may open it"
            )
        if not reaper.watch(self):
            self._notes["exit"] = "the interpreter is ending: connections stay open until it has"
        return opened

    def _tell_rebuilt(self, done: Rebuilt | None) -> None:
        if done is not None and self._clock.wall() - done.at < _TOLD_FOR:
            kept = f"it was kept as {done.set_aside} and" if done.set_aside else "it was"
            self._notes["rebuilt"] = (
                f"the store was damaged ({done.why}); {kept} begun anew: leases, pins and tokens that it held are gone"
            )
        else:
            self._notes.pop("rebuilt", None)

    def _read(self, statement: str, *arguments: object) -> Rows:
        with self._read_lock:
            self._used = time.monotonic()
            if self._reader is not None and self._reader.replaced():
                self._drop(reader=True)
            try:
                if self._reader is None:
                    self._reader = self._opened_for_reading()
                rows = self._reader.connection.execute(statement, arguments)
                return rows.fetchall()  # no cursor outlives the lock
            except sqlite3.Error as error:
                raise self._explained(error, lambda: self._drop(reader=True)) from error

    def _opened_for_reading(self) -> Opened:
        with self._write_lock:
            if self._suspect or self._sync_failed or (self._writer is not None and self._writer.replaced()):
                self._drop(writer=True)  # checked anew, and replaced if it is damaged, before anybody goes on
            if self._writer is None:
                self._writer = self._open_or_rebuild()
                self._show(self._writer, {}, [])
        return self._open()

    def _commit(self, work: Callable[[Transaction], T]) -> T:
        job = _Job(work)
        with self._queue_lock:
            self._queue.append(job)
        with self._write_lock:
            if not job.done:
                with self._queue_lock:
                    jobs, self._queue = self._queue, []
                self._used = time.monotonic()
                try:
                    self._commit_all(jobs)
                except BaseException as error:
                    for waiting in jobs:
                        if not waiting.done:
                            waiting.error, waiting.done = error, True
                            if waiting is not job and not isinstance(error, Exception):  # a signal to this thread
                                waiting.error = StoreUnavailable(f"{self.path}: the commit was interrupted; try again")
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def _commit_all(self, jobs: Sequence[_Job]) -> None:
        try:
            for _ in range(3):
                if self._writer is None:
                    self._writer = self._open_or_rebuild()
                opened = self._writer
                with opened.locked(self._settings.busy_timeout):
                    if not opened.replaced():
                        while jobs and not self._in_transaction(opened, jobs):
                            jobs = [job for job in jobs if not job.done]
                        return
                self._drop(writer=True)  # another process set the file aside: its successor is the store now
            raise StoreUnavailable(f"{self.path} is replaced by somebody all the time; nothing was written")
        except sqlite3.Error as error:
            raise self._explained(error, lambda: self._drop(writer=True)) from error
        except OSError as error:
            self._drop(writer=True)
            raise StoreUnavailable(f"{self.path}: {error.strerror or error}; nothing was acknowledged") from error

    def _in_transaction(self, opened: Opened, jobs: Sequence[_Job]) -> bool:
        """One commit of all jobs. False where one failed by its caller's mistake: the others are to do again."""
        connection = opened.connection
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[tuple[_Job, Any, BaseException | None]] = []
        try:
            transaction = Transaction(connection, self._clock.wall())
            for job in jobs:
                try:
                    outcomes.append((job, job.work(transaction), None))
                except (StoreError, ValueError) as error:  # a refusal comes before the job's first write
                    outcomes.append((job, None, error))
                except Exception as error:
                    if isinstance(error, sqlite3.Error) and not isinstance(error, _MISTAKES):
                        raise
                    job.error, job.done = error, True
                    connection.execute("ROLLBACK")
                    return False
            changed = transaction.finish()
            connection.execute("COMMIT" if changed else "ROLLBACK")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._show(opened, transaction.areas, transaction.page)  # after the commit, before the acknowledgement
        for job, result, refusal in outcomes:
            job.result, job.error, job.done = result, refusal, True
        if changed and opened.log_size() > self._settings.checkpoint_size:
            self._note("checkpoint", fold(opened, self._settings, self._clock.wall()))
        return True

    def _show(self, opened: Opened, areas: dict[str, int], fields: Fields) -> None:
        self._note("page", self._mirror.show(opened, areas, fields))

    def _note(self, about: str, wrong: str) -> None:
        """What `health` says of something; "" for nothing."""
        if wrong:
            self._notes[about] = wrong
        else:
            self._notes.pop(about, None)

    def _open_or_rebuild(self) -> Opened:
        """The writer's connection; the caller holds the write lock."""
        try:
            if self._sync_failed and self.path.exists():
                replace_copy(self.path, self._settings, self._clock)
            self._sync_failed = False
            return self._open()
        except StoreDamaged as damage:
            set_aside(self.path, self._settings, self._clock, why=str(damage), above=self._mirror.highest_seen())
            return self._open()

    def _explained(self, error: sqlite3.Error, drop: Callable[[], None]) -> StoreError:
        """Our error for SQLite's; closes what can't be trusted after it."""
        told, trust = explain(error, self.path)
        if trust is not Trust.KEPT:
            drop()
        self._suspect = self._suspect or trust is Trust.SUSPECT
        self._sync_failed = self._sync_failed or trust is Trust.SYNC_FAILED
        return told


def _end(prefix: str) -> str | bytes:
    """The end of a prefix's range; a blob, which SQLite sorts above every text, where there is none."""
    end = prefix_end(prefix)
    return b"" if end is None else end
