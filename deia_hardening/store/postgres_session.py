"""One connection to PostgreSQL: opened on demand, closed when idle, never shared with a fork.

Makes the tables at the first use. What fails is a `StoreUnavailable` that says whether a write may have arrived.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from deia_hardening.store.base import StoreError, StoreUnavailable
from deia_hardening.store.idle import reaper
from deia_hardening.store.settings import StoreSettings

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

FORMAT: Final = 1
_SCHEMA_LOCK: Final = 0x64656961  # an advisory lock of our own: "deia"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS deia_store_meta (
    namespace text COLLATE "C" PRIMARY KEY, format integer NOT NULL, identity text NOT NULL,
    revision bigint NOT NULL, horizon bigint NOT NULL, purged timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS deia_store_entries (
    namespace text COLLATE "C", key text COLLATE "C", value bytea, revision bigint NOT NULL, at timestamptz NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE UNIQUE INDEX IF NOT EXISTS deia_store_entries_revision ON deia_store_entries (namespace, revision);
CREATE TABLE IF NOT EXISTS deia_store_leases (
    namespace text COLLATE "C", name text COLLATE "C", holder text NOT NULL, token bigint NOT NULL,
    expires timestamptz NOT NULL, PRIMARY KEY (namespace, name)
);
"""


class PostgresSession:
    """Runs transactions, one at a time. Thread-safe; every call may block on the network."""

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self._url = url
        self._settings = settings
        self.place = without_password(url)
        self._reset()
        of_this_process.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._prepared = False
        self._used = 0.0

    def work(self, work: Callable[[Any], T]) -> T:
        """Run `work(cursor)` in a transaction. Raises what it raises, and StoreError."""
        with self._lock:
            self._used = time.monotonic()
            fresh = self._connection is None
            try:
                return self._once(work)
            except _NotBegun as error:
                if fresh and not isinstance(error, _Elsewhere):
                    raise
                return self._once(work)  # the connection had died while nobody used it

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        with self._lock:
            self._drop()

    def close_if_idle(self) -> float | None:
        """For the reaper: close when unused; seconds until to ask again, or None when closed."""
        left = self._used + self._settings.idle_close - time.monotonic()
        if left > 0:
            return left
        if not self._lock.acquire(blocking=False):
            return 0.1
        try:
            self._drop()
        finally:
            self._lock.release()
        return None

    def forget(self) -> Any:
        """In a child: as never connected. Returns the parent's connection, to be kept and never used."""
        inherited = self._connection
        self._reset()
        return inherited

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        connection = connect(self._url, self._settings)
        try:
            if not self._prepared:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._prepared = True
        reaper.watch(self)
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Make the tables and the namespace where they are missing; refuse those of a newer release."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
            cursor.execute(_SCHEMA)
            cursor.execute(
                "INSERT INTO deia_store_meta VALUES (%s, %s, %s, "
                "(extract(epoch FROM clock_timestamp()) * 1000)::bigint, 0, clock_timestamp()) "
                "ON CONFLICT DO NOTHING",
                (self._settings.namespace, FORMAT, secrets.token_hex(8)),
            )
            cursor.execute("SELECT format FROM deia_store_meta WHERE namespace = %s", (self._settings.namespace,))
            found = (cursor.fetchone() or (0,))[0]
        if found > FORMAT:
            raise StoreError(f"{self.place} has format {found}; this release reads up to {FORMAT}: upgrade")

    def _once(self, work: Callable[[Any], T]) -> T:
        began = False
        try:
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            with connection.transaction(), connection.cursor() as cursor:
                began = True
                return work(cursor)
        except NamespaceGone as error:
            raise self._elsewhere(f"{self.place}: {error}") from error
        except StoreError:
            raise
        except Exception as error:
            import psycopg

            if not isinstance(error, psycopg.Error):
                raise
            where = f"{self.place}: {_first_line(error)}"
            if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.ReadOnlySqlTransaction)):
                raise self._elsewhere(f"{where}; nothing was written; try again") from error
            if isinstance(error, psycopg.OperationalError) and not isinstance(error, psycopg.errors.LockNotAvailable):
                self._drop()
            if not began:
                raise _NotBegun(f"{where}; nothing was written; try again") from error
            raise StoreUnavailable(
                f"{where}; whether the last write arrived is unknown; look, then try again"
            ) from error
        finally:
            self._used = time.monotonic()

    def _elsewhere(self, told: str) -> _Elsewhere:
        self._prepared = False
        self._drop()
        return _Elsewhere(told)


class NamespaceGone(StoreUnavailable):
    """The database has no row for the namespace (any more)."""

    def __init__(self) -> None:
        super().__init__("the namespace is not there; nothing was written; try again")


class _NotBegun(StoreUnavailable):
    """Nothing was done, so trying again is safe."""


class _Elsewhere(_NotBegun):
    """Another server answers than the one that was prepared: a standby, a restored or an empty database."""


def connect(url: str, settings: StoreSettings) -> psycopg.Connection[Any]:
    """A session as every one here must be. Blocking; raises StoreError without the driver, else psycopg's errors."""
    try:
        import psycopg
    except ImportError as error:
        raise StoreError(
            "store.url names PostgreSQL, whose driver is not installed: pip install 'deia-hardening[postgres]'"
        ) from error
    timeout = max(1, round(settings.busy_timeout))
    milliseconds = int(settings.busy_timeout * 1000)
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=timeout,
        application_name="deia-hardening",
        # Acknowledged means on disk, whatever the server's default is.
        options=f"-c synchronous_commit=on -c lock_timeout={milliseconds} -c statement_timeout={milliseconds * 2}",
        tcp_user_timeout=milliseconds * 2,
        keepalives_idle=timeout * 2,  # the system's two hours would hold every caller when the server's host is gone
        keepalives_interval=timeout,
        keepalives_count=2,
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def without_password(url: str) -> str:
    """What may be shown of a URL: host, port and database. Pure."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"postgresql://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return "postgresql://…"


class Inheritable(Protocol):
    """What holds a connection that a forked child must leave alone."""

    def forget(self) -> Any: ...


of_this_process: weakref.WeakSet[Inheritable] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork_in_child() -> None:
    for session in list(of_this_process):
        connection = session.forget()
        if connection is not None:
            _inherited.append(connection)  # closing it here would end the parent's session


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
