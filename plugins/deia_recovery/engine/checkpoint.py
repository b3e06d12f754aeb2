"""Moving the write-ahead log into the database file: one holder per machine, digests first, writers hardly delayed.

The bulk is moved while everybody goes on writing; only the small rest is moved while the write lock is held, so that
the log can start again from its beginning. What is about to be moved is on disk as digests before it is moved.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

from deia_hardening.runtime import runtime
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.pages import PageProblem, PageSums, digest
from deia_recovery.engine.wal import LogTail

if TYPE_CHECKING:
    from deia_recovery.engine.turns import Turns

logger = logging.getLogger("deia_recovery")

_ZEROS = bytes(1 << 20)

_ROUNDS = 2
_LITTLE = 256 << 10
"""Bytes of log that may be left to move while the writers wait. Each round leaves what was committed while it ran:
under full load the first one 4 MiB, for which the writers waited 11 ms."""


class Checkpointer:
    """The checkpoints of one engine; whichever worker gets `checkpoint.lock` makes them."""

    def __init__(self, engine: Turns) -> None:
        self._engine = engine
        self._database = engine.database
        self._connections = engine.connections
        self._log = engine.database.with_name(engine.database.name + "-wal")
        self._lock = threading.Lock()
        self._file = FileLock(engine.folder / "checkpoint.lock")
        self._sums = PageSums(engine.database)
        self._seen = 0
        self.running = False
        self.problems: list[PageProblem] = []
        """Pages that did not verify, as far as checkpoints and scrubs found."""

    def lay_out(self) -> None:
        """Write zeros behind a short log, so that commits overwrite and do not extend it (a third faster).

        Zeros are no frames: SQLite ignores them. Called by the writer before its first commit.
        """
        reserve = self._engine.options.log_reserve
        try:
            fd = os.open(self._log, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            size = os.fstat(fd).st_size
            if size < reserve and not self._engine.low_on_space:
                with self._engine.turn():
                    size = os.fstat(fd).st_size
                    while size < reserve:
                        size += os.pwrite(fd, _ZEROS[: reserve - size], size)
                os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
        except OSError:
            pass  # a full disk: commits will say so
        finally:
            os.close(fd)

    def due(self) -> None:
        """After a commit: start a checkpoint when the log has grown enough. Never blocks."""
        self._seen += 1
        if self._seen % 16 or self.running:
            return
        if self._connections.log_bytes() < self._engine.options.log_limit:
            return
        self.running = True
        runtime().threads.submit(self._guarded)

    def _guarded(self) -> None:
        try:
            self.run()
        except Exception:
            logger.exception(
                "a checkpoint of %s failed; the log keeps everything and it is tried again", self._engine.database
            )
        finally:
            self.running = False

    def run(self, *, wait: bool = False) -> bool:
        """Move the log into the file. False when another worker is at it. Blocks."""
        with self._engine.kept_open(), self._lock:
            if wait:
                self._file.acquire()
            elif not self._file.try_acquire():
                self._file.close()
                return False
            self._engine.wake()
            try:
                with self._connections.lent() as fd:
                    self._move(fd)
            finally:
                self._file.close()
        return True

    def _move(self, fd: int) -> None:
        engine, connections = self._engine, self._connections
        with connections.one() as first, connections.one() as second:
            tail = LogTail(self._log)
            candidates = self._announce(tail, first)
            if not candidates:
                return
            _passive(second)
            first.execute("COMMIT")
            for _ in range(_ROUNDS):
                if connections.log_bytes() < _LITTLE:
                    break
                _pin(first, "BEGIN")
                self._announce_late(tail, candidates)
                _passive(second)
                first.execute("COMMIT")
            with engine.turn():
                _pin(first, "BEGIN IMMEDIATE")
                try:
                    self._announce_late(tail, candidates)
                    _passive(second)
                finally:
                    first.execute("ROLLBACK")
            self._report(self._sums.fold(fd, candidates))

    def _announce(self, tail: LogTail, pin: sqlite3.Connection) -> dict[int, set[bytes]]:
        """Pin a reader at the log's present end, so that no page beyond what is announced can be moved."""
        _pin(pin, "BEGIN")
        candidates = self._sums.load_next()
        if _collect(tail, self._connections.log_end(), candidates):
            self._sums.save_next(candidates)
        return candidates

    def _announce_late(self, tail: LogTail, candidates: dict[int, set[bytes]]) -> None:
        """The same for what was committed since."""
        late: dict[int, set[bytes]] = {}
        if _collect(tail, self._connections.log_end(), late):
            self._sums.append_next(late)
            for number, values in late.items():
                candidates.setdefault(number, set()).update(values)

    def _report(self, problems: list[PageProblem]) -> None:
        for problem in problems:
            logger.error("%s page %d %s", problem.file, problem.page, problem.detail)
        self.problems.extend(problems)

    def scrub(self, first: int, count: int) -> tuple[int, list[PageProblem]]:
        """Check `count` pages from `first` against their digests. Returns (next page, or 1 at the end; problems)."""
        with self._engine.kept_open(), self._lock:
            self._file.acquire()
            try:
                self._engine.wake()
                with self._connections.lent() as fd:
                    problems = self._sums.check(fd, set(), first=first, count=count)
                    pages = os.fstat(fd).st_size // 4096
            finally:
                self._file.close()
        self._report(problems)
        following = first + count
        return (1 if following > pages else following), problems


def _collect(tail: LogTail, end: tuple[bytes, int], candidates: dict[int, set[bytes]]) -> bool:
    """Add the digests of what a checkpoint could move of the frames up to `end`; whether there were any."""
    found = False
    for number, page in tail.newest(*end):
        candidates.setdefault(number, set()).add(digest(page))
        found = True
    return found


def _pin(connection: sqlite3.Connection, begin: str) -> None:
    connection.execute(begin)
    connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()


def _passive(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
