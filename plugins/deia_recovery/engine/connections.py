"""The process's SQLite connections to one database: one that writes, a few that read.

All of them are opened with the settings durability rests on: WAL, synchronous=FULL, no automatic checkpoint. The
process keeps one descriptor of its own on the file as long as any connection is open: POSIX drops a process's locks
on a file when any of its descriptors is closed, so it is closed last.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sqlite3
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deia_recovery.engine import batch
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.options import EngineOptions

_SHARED_FIRST = 0x40000002
_SHARED_SIZE = 510
_FRAMES = struct.Struct("=HI")
_NO_CHECKPOINT_ON_CLOSE: int = getattr(sqlite3, "SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE", 1006)
_MOVED = struct.Struct("=I")
_left_open: list[sqlite3.Connection] = []


def connect(database: Path, *, busy: float = 10.0, reading: bool = False) -> sqlite3.Connection:
    """A connection with our settings. The database must exist; it is never created here."""
    connection = sqlite3.connect(
        f"file:{quoted(database)}?mode=rw",
        uri=True,
        timeout=busy,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
    )
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA temp_store=MEMORY")  # a statement's undo journal would go to a file from 64 KiB on
        if hasattr(connection, "setconfig"):  # Python 3.12
            connection.setconfig(_NO_CHECKPOINT_ON_CLOSE, True)
        if reading:
            connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA fullfsync=ON")
        connection.execute("PRAGMA synchronous=FULL")  # opens file and log, so it comes last: what fails here closes
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def apart(database: Path) -> Iterator[sqlite3.Connection]:
    """A reading connection for a moment, which leaves file and log as they are. Only where this process has the
    database not open otherwise: the descriptor that is closed here would take the process's locks with it."""
    fd = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        connection = connect(database, reading=True)
        try:
            yield connection
        finally:
            with _kept_from_checkpoint(fd, connection):
                connection.close()
    finally:
        os.close(fd)


def quoted(path: Path) -> str:
    """A path as SQLite's URIs take it."""
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class Connections:
    """What is open. `writer` belongs to the writer thread; readers are lent one call at a time."""

    def __init__(self, database: Path, options: EngineOptions) -> None:
        self._database = database
        self._options = options
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._slots = threading.BoundedSemaphore(options.readers)
        self._fd = -1
        self._lent = 0
        self._retired = False
        self._use = FileLock(database.parent.parent / "use.lock")
        self._index_fd = -1
        self._index: mmap.mmap | None = None
        self.writer: sqlite3.Connection | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is open."""
        return self._fd < 0

    @property
    def fd(self) -> int:
        """The process's own descriptor of the database file; closed after every connection."""
        with self._lock:
            if self._fd < 0:
                self._use.acquire(shared=True)  # who checks or restores the state has it alone
                self._fd = os.open(self._database, os.O_RDWR | os.O_CLOEXEC)
            return self._fd

    @contextlib.contextmanager
    def lent(self) -> Iterator[int]:
        """The process's own descriptor, which stays open meanwhile even if all of this is retired."""
        with self._lock:
            self._lent += 1
        try:
            yield self.fd
        finally:
            self._take_back(None, broken=False)

    def open_writer(self) -> sqlite3.Connection:
        _ = self.fd
        self.writer = connect(self._database, busy=self._options.busy)
        self.writer.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # opens the log
        batch.prepare(self.writer)
        return self.writer

    def log_bytes(self) -> int:
        """How much of the log is in use and not yet in the file; its size would count what is laid out in advance."""
        index = self._shared_index()
        if index is None:
            return 0
        (page_size, frames), (moved,) = _FRAMES.unpack_from(index, 14), _MOVED.unpack_from(index, 96)
        return int(max(0, frames - moved) * ((65536 if page_size == 1 else page_size) + 24))

    def log_end(self) -> tuple[bytes, int]:
        """(salts, number of committed frames) of the log: the two copies of the index's header agree on them."""
        index = self._shared_index()
        for _ in range(1000):
            if index is None:
                break
            one, other = index[0:48], index[48:96]
            if one == other:
                return one[32:40], int(_FRAMES.unpack_from(one, 14)[1])
        return b"", 0

    def _shared_index(self) -> mmap.mmap | None:
        """The index that SQLite's connections share (section 2.1 of "WAL-mode File Format"); None before the first."""
        index = self._index
        if index is None:
            with self._lock:
                index = self._index
                if index is None:
                    try:
                        self._index_fd = os.open(f"{self._database}-shm", os.O_RDONLY | os.O_CLOEXEC)
                        index = self._index = mmap.mmap(self._index_fd, 136, access=mmap.ACCESS_READ)
                    except (OSError, ValueError):
                        return None
        return index

    def drop_writer(self) -> None:
        """Close the writer's connection after a failure; the next write opens a new one."""
        connection, self.writer = self.writer, None
        if connection is not None:
            self.close_one(connection)

    @contextlib.contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        with self._slots:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
                self._lent += 1
            broken = True
            try:
                if connection is None:
                    _ = self.fd
                    connection = connect(self._database, busy=self._options.busy, reading=True)
                try:
                    yield connection
                    broken = False
                except sqlite3.Error:
                    raise
                except BaseException:
                    broken = False
                    raise
            finally:
                self._take_back(connection, broken=broken)

    @contextlib.contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, while the descriptor is lent."""
        connection = connect(self._database, busy=self._options.busy)
        try:
            yield connection
        finally:
            self.close_one(connection)

    def _take_back(self, connection: sqlite3.Connection | None, *, broken: bool) -> None:
        if connection is not None and (broken or self._retired):
            self.close_one(connection)
            connection = None
        with self._lock:
            self._lent -= 1
            if connection is not None:
                self._idle.append(connection)
            last = self._retired and not self._lent
        if last:
            self.close()

    def retire(self) -> None:
        """Close what is idle now and the rest when it is given back. Writer thread only."""
        with self._lock:
            self._retired = True
            busy = self._lent > 0
            idle, self._idle = self._idle, []
        for connection in idle:
            self.close_one(connection)
        self.drop_writer()
        if not busy:
            self.close()

    def close_one(self, connection: sqlite3.Connection) -> None:
        """Close without letting SQLite move the log into the file: only the checkpointer does, with its digests.

        One after the other: what keeps SQLite from it is one lock of the whole process.
        """
        with self._closing:
            try:
                with _kept_from_checkpoint(self.fd, connection):
                    connection.close()
            except OSError:  # the system gave no lock: what stays open moves nothing
                _left_open.append(connection)

    def close(self) -> None:
        """Close everything, the descriptor last."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self.close_one(connection)
        self.drop_writer()
        with self._lock:
            fd, self._fd = self._fd, -1
            index, self._index = self._index, None
            index_fd, self._index_fd = self._index_fd, -1
        if index is not None:
            index.close()
        for one in (fd, index_fd):
            if one >= 0:
                os.close(one)
        self._use.close()


@contextlib.contextmanager
def _kept_from_checkpoint(fd: int, connection: Any) -> Iterator[None]:
    """Keep SQLite from the exclusive lock that its checkpoint-on-close needs, by a lock on the open file description
    (it conflicts with POSIX locks of the same process too). Not needed where the connection can be told."""
    if hasattr(connection, "setconfig"):
        yield
        return
    fcntl.fcntl(fd, _SET_LOCK, _span(fcntl.F_RDLCK))
    try:
        yield
    finally:
        fcntl.fcntl(fd, _SET_LOCK, _span(fcntl.F_UNLCK))


_SET_LOCK: int = getattr(fcntl, "F_OFD_SETLK", 90)  # 90: its number in macOS's fcntl.h


def _span(kind: int) -> bytes:
    """A `struct flock` over the bytes that SQLite's shared locks lie on."""
    if sys.platform == "darwin":
        return struct.pack("@qqihh", _SHARED_FIRST, _SHARED_SIZE, 0, kind, os.SEEK_SET)
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
