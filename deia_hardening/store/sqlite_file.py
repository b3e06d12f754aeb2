"""Opening, checking and replacing the SQLite file of a store.

A file that is not whole is renamed (with its log) to `…damaged-<time>` and a new one is made under the file
lock, so that of several workers that find the damage one replaces it and the others find the new file.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from deia_hardening.clock import Clock
from deia_hardening.store.base import Rebuilt, StoreDamaged, StoreError, StoreUnavailable
from deia_hardening.store.filesystem import network_file_system
from deia_hardening.store.settings import StoreSettings
from deia_hardening.store.transaction import Transaction

FORMAT: Final = 1
_LONGEST_PAUSE: Final = 0.002  # seconds between two tries to get the lock of another process
_AT_A_STRETCH: Final = 0.05  # seconds for which one takes the lock again at once
_APPLICATION_ID: Final = 0x64656961  # "deia"
_TABLES: Final = ("meta", "entries", "leases")
_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_revision ON entries (revision);
CREATE TABLE leases (
    name TEXT PRIMARY KEY, holder TEXT NOT NULL, token INTEGER NOT NULL,
    expires REAL NOT NULL, ttl REAL NOT NULL, boot TEXT NOT NULL
) WITHOUT ROWID;
"""


@attrs.define
class Opened:
    """An open connection, the file it belongs to, and the descriptor of the lock file."""

    path: Path
    connection: sqlite3.Connection
    inode: tuple[int, int]
    lock: int
    identity: str
    rebuilt: Rebuilt | None = None
    _began: float = 0.0
    _released: float = 0.0

    def replaced(self) -> bool:
        """Whether the file under our name is no longer the one that is open (set aside, deleted)."""
        try:
            status = self.path.stat()
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.inode

    def log_size(self) -> int:
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Keep other processes from writing and checkpointing. StoreUnavailable after `timeout` seconds.

        Who takes the lock over and over lets it be for a moment now and then: others only ask for it from time to time.
        """
        now = time.monotonic()
        if now - self._released > _LONGEST_PAUSE:
            self._began = now
        elif now - self._began > _AT_A_STRETCH:
            time.sleep(2 * _LONGEST_PAUSE)
            self._began = time.monotonic()
        _flock(self.lock, self.path, timeout)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            self._released = time.monotonic()

    def close(self) -> None:
        """Close; a last connection folds the log into the file, so the lock is held (without it: no matter)."""
        try:
            with contextlib.suppress(StoreUnavailable, OSError):
                _flock(self.lock, self.path, 1.0)
            self.connection.close()
        finally:
            os.close(self.lock)


def _flock(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreUnavailable(
                    f"another process has held the lock of {path} for {timeout:g} s; nothing was written; try again"
                ) from None
        else:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def open_file(
    path: Path, settings: StoreSettings, clock: Clock, *, check: bool, above: Callable[[], int] = lambda: 0
) -> Opened:
    """Open the store's file, making it when it is not there.

    `check` reads all of it. `above` tells the highest revision that the home has seen, 0 where it never had a store.
    Raises StoreDamaged for a file that is not whole, StoreError for one that can't be used.
    """
    lock = _open_lock(path, settings)
    try:
        # Under the lock, so that no other process sets the file aside between two of these steps.
        _flock(lock, path, settings.busy_timeout)
        if not path.exists():
            _create_missing(path, clock, settings, above())
        connection = _connect(path, settings)
        try:
            head = _verify(connection, path, check=check)
            status = path.stat()
        except BaseException:
            connection.close()
            raise
        fcntl.flock(lock, fcntl.LOCK_UN)
        rebuilt = msgspec.json.decode(head["rebuilt"], type=Rebuilt) if "rebuilt" in head else None
        return Opened(path, connection, (status.st_dev, status.st_ino), lock, str(head["identity"]), rebuilt)
    except BaseException:
        os.close(lock)
        raise


def set_aside(path: Path, settings: StoreSettings, clock: Clock, *, why: str, above: int) -> Rebuilt | None:
    """Rename a damaged file and make an empty one; None when another process has done so meanwhile.

    Revisions of the new file start above `above` and above those of the old one, so fencing tokens keep growing.
    """
    lock = _open_lock(path, settings)
    try:
        _flock(lock, path, settings.busy_timeout)
        if path.exists():
            with contextlib.suppress(StoreDamaged), contextlib.closing(_connect(path, settings)) as connection:
                _verify(connection, path, check=True)
                return None
        now = clock.wall()
        kept = _move_aside(path, f"damaged-{_stamp(now)}")
        done = Rebuilt(now, str(kept), why)
        _create(path, clock, settings, rebuilt=done, above=above)
        return done
    finally:
        os.close(lock)


def replace_copy(path: Path, settings: StoreSettings, clock: Clock) -> None:
    """Put a freshly written and synced copy in the file's place, after a sync of it has failed.

    A failed sync may have lost what it was to write, and a later one that succeeds does not bring it back
    (fsyncgate): what can be read now is written anew, and the old file is kept aside. Identity and revisions stay.
    Raises StoreError; then the old file is still in place.
    """
    lock = _open_lock(path, settings)
    try:
        _flock(lock, path, settings.busy_timeout)
        with contextlib.closing(_connect(path, settings)) as old:
            _verify(old, path, check=True)
            rows = {table: old.execute(f"SELECT * FROM {table}").fetchall() for table in _TABLES}  # noqa: S608
        beside = _write_new(path, rows)
        _move_aside(path, f"failed-sync-{_stamp(clock.wall())}")
        _move_in(beside, path)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: {error}; nothing was changed") from error
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror or error}; nothing was acknowledged") from error
    finally:
        os.close(lock)


def _open_lock(path: Path, settings: StoreSettings) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.network_filesystem == "refuse" and (kind := network_file_system(path.parent)):
            raise StoreError(
                f"{path.parent} is on a network file system ({kind}), where SQLite's locks can't be trusted: put the "
                "home on a local disk, or use PostgreSQL (store.url); nothing was opened"
            )
        return os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror or error}") from error


def _create_missing(path: Path, clock: Clock, settings: StoreSettings, above: int) -> None:
    """Make the file that is not there; where there was one, it counts as a damaged one. The caller holds the lock."""
    now = clock.wall()
    kept = ""
    if any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-shm")):
        # SQLite would read the log of the lost file into the new one (howtocorrupt.html, section 1.4)
        kept = str(_move_aside(path, f"damaged-{_stamp(now)}"))
        _sync(path.parent)
    rebuilt = Rebuilt(now, kept, "the file was gone") if kept or above else None
    _create(path, clock, settings, rebuilt=rebuilt, above=above)


def _create(path: Path, clock: Clock, settings: StoreSettings, *, rebuilt: Rebuilt | None, above: int) -> None:
    """Make an empty file; the caller holds the lock."""
    meta: list[tuple[object, ...]] = [
        ("format", FORMAT),
        ("identity", secrets.token_hex(8)),
        # Above what any earlier file of this home can have reached: a thousand writes a second would have to last.
        ("revision", max(int(clock.wall() * 1000), above + 1_000_000 if above else 0)),
        ("horizon", 0),
    ]
    if rebuilt is not None:
        meta.append(("rebuilt", msgspec.json.encode(rebuilt)))
    _move_in(_write_new(path, {"meta": meta}), path)


def _write_new(path: Path, rows: Mapping[str, Sequence[tuple[object, ...]]]) -> Path:
    """Write a file beside, whole and synced; returns its name. The caller holds the lock."""
    beside = path.with_name(f".{path.name}.new")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{beside}{suffix}").unlink(missing_ok=True)
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(beside, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        connection.execute("BEGIN")
        for table, content in rows.items():
            for row in content:
                connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
        connection.execute("COMMIT")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        connection.close()
    if mode != "wal":
        raise StoreError(f"SQLite can't keep a write-ahead log in {path.parent} (it chose '{mode}'): use a local disk")
    _sync(beside)
    return beside


def _move_in(beside: Path, path: Path) -> None:
    beside.rename(path)
    _sync(path.parent)


def _move_aside(path: Path, label: str) -> Path:
    kept = path.with_name(f"{path.name}.{label}-{secrets.token_hex(4)}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    return kept


def _stamp(now: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path, settings: StoreSettings) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",  # never makes a file: that is `_create`'s, which does it whole
            uri=True,
            timeout=settings.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: {error}") from error
    try:
        for pragma in (
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            "trusted_schema=OFF",
            "cell_size_check=ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        if sys.platform == "darwin":
            connection.execute("PRAGMA fullfsync=ON")
            connection.execute("PRAGMA checkpoint_fullfsync=ON")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damage(path, error) from error
    return connection


def _verify(connection: sqlite3.Connection, path: Path, *, check: bool) -> dict[str, Any]:
    """The head of a file that is whole and ours; raises StoreDamaged, StoreError or StoreUnavailable."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if not {"meta", "entries", "leases"} <= tables:
            if application != _APPLICATION_ID and tables:
                raise StoreError(f"{path} is a SQLite file of another program: give the store a path of its own")
            raise StoreDamaged("its tables are missing")
        values = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        if not {"format", "identity", "revision", "horizon"} <= values.keys():
            raise StoreDamaged("its head is missing")
        if values["format"] > FORMAT:
            raise StoreError(
                f"{path} has format {values['format']}; this release reads up to {FORMAT}: upgrade, or restore it"
            )
        if check:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise StoreDamaged(str(verdict)[:200])
        return values
    except sqlite3.DatabaseError as error:
        raise _damage(path, error) from error


def _damage(path: Path, error: sqlite3.DatabaseError) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(str(error))
    return StoreUnavailable(f"{path}: {error}; nothing was changed")


def fold(opened: Opened, settings: StoreSettings, now: float) -> str:
    """Forget old deletions and fold the log into the file, whose lock is held. Returns what failed; that is no loss."""
    connection = opened.connection
    try:
        connection.execute("BEGIN IMMEDIATE")
        Transaction(connection, now).purge(settings.tombstones)
        connection.execute("COMMIT")
        # Reads here are single statements: a checkpoint that finds one running waits for that only.
        connection.execute("PRAGMA busy_timeout=100")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute(f"PRAGMA busy_timeout={int(settings.busy_timeout * 1000)}")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return f"the log of {opened.path} could not be folded into it: {error}"
    return ""


class Trust(enum.Enum):
    """What an error leaves of the trust in a file."""

    KEPT = "kept"
    CLOSED = "closed"
    SUSPECT = "suspect"
    SYNC_FAILED = "sync failed"


def explain(error: sqlite3.Error, path: Path) -> tuple[StoreError, Trust]:
    """Our error for SQLite's, and what it means for the file. Pure."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        told = f"{path} is locked by another process; nothing was written; try again"
        return StoreUnavailable(told), Trust.KEPT
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed" in str(error):
        told = f"{path}: {error}; it is checked, and set aside if damaged, at the next use"
        return StoreDamaged(told), Trust.SUSPECT
    trust = Trust.SYNC_FAILED if code == sqlite3.SQLITE_IOERR else Trust.CLOSED
    return StoreUnavailable(f"{path}: {error}; nothing was acknowledged"), trust
