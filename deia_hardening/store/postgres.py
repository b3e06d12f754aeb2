"""The store of several machines: PostgreSQL, through psycopg (the `postgres` extra), imported when first used.

Writers of a namespace take turns on one row, so revisions grow in the order of commits and a watch that asks
for "everything after N" misses nothing. Leases run on the server's clock. One connection per process, open only
while there is work, and one that listens while the page is kept; after a fork the child opens its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias, TypeVar

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.store.base import (
    Blocking,
    Change,
    Entry,
    Grant,
    Rebuilt,
    Revisions,
    StaleRevision,
    WatchExpired,
    Write,
    area_of,
    check_key,
    check_ttl,
    check_write,
    prefix_end,
)
from deia_hardening.store.derived import Derived
from deia_hardening.store.epoch import HomePage
from deia_hardening.store.postgres_listen import CHANNEL, Listener
from deia_hardening.store.postgres_session import NamespaceGone, PostgresSession
from deia_hardening.store.settings import StoreSettings
from deia_hardening.store.transaction import PAGE_PREFIX, check_page_fields

T = TypeVar("T")

Rows: TypeAlias = list[Any]

FORMAT: Final = 1


class PostgresStore(Derived):
    """A `Backend` on a PostgreSQL database. Every method may block on the network; call it from any thread.

    A call that fails leaves open whether its write arrived when the connection broke at the commit: the error says
    so, and `if_revision` makes trying again safe.
    """

    def __init__(
        self,
        url: str,
        page: HomePage | None = None,
        settings: StoreSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._page = page
        self._settings = settings or StoreSettings()
        self._clock = clock
        self._space = self._settings.namespace
        self._session = PostgresSession(url, self._settings)
        self._work = self._session.work
        self._listener = Listener(url, self._settings)
        self._notes: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<PostgresStore {self._session.place}>"

    # ---- reading

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None. Raises StoreError."""
        check_key(key)
        rows = self._rows(
            "SELECT value, revision FROM deia_store_entries WHERE namespace = %s AND key = %s AND value IS NOT NULL",
            key,
        )
        return Entry(*rows[0]) if rows else None

    def list(self, prefix: str) -> list[tuple[str, Entry]]:
        """Every key that starts with `prefix` ("" for all), in order. Raises StoreError."""
        end = prefix_end(prefix)
        rows = self._rows(
            "SELECT key, value, revision FROM deia_store_entries WHERE namespace = %s AND key >= %s "
            "AND (%s::text IS NULL OR key < %s) AND value IS NOT NULL ORDER BY key",
            prefix,
            end,
            end,
        )
        return [(key, Entry(value, revision)) for key, value, revision in rows]

    def revision(self) -> int:
        """The newest revision of the namespace."""
        return int(self._meta("revision"))

    def changes(self, prefix: str, since: int, limit: int) -> Sequence[Change]:
        """What changed after revision `since`, oldest first. Raises WatchExpired when deletions were forgotten."""
        end = prefix_end(prefix)
        rows = self._rows(
            "SELECT m.horizon, e.key, e.value, e.revision FROM deia_store_meta m LEFT JOIN deia_store_entries e "
            "ON e.namespace = m.namespace AND e.revision > %s AND e.key >= %s AND (%s::text IS NULL OR e.key < %s) "
            "AND (e.value IS NOT NULL OR %s > 0) WHERE m.namespace = %s ORDER BY e.revision LIMIT %s",
            since,
            prefix,
            end,
            end,
            since,
            self._space,
            limit,
            named=False,
        )
        if rows and 0 < since < rows[0][0]:
            raise WatchExpired(f"a watch of '{prefix}' is older than the oldest deletion that is kept; list again")
        return [
            Change(key, None if value is None else Entry(value, revision), revision)
            for _, key, value, revision in rows
            if key is not None
        ]

    def rebuilt(self) -> Rebuilt | None:
        """None: a damaged server is its administrators' to restore."""
        return None

    def identity(self) -> str:
        """What tells this namespace from one made anew."""
        return str(self._meta("identity"))

    def stamp(self) -> object:
        """None: only asking tells."""
        return None

    def poll_interval(self) -> float:
        return self._settings.recheck_interval if self._listener.up else self._settings.poll_interval

    def heard(self) -> int:
        return self._listener.heard

    async def listen(self, blocking: Blocking) -> None:
        await self._listener.run(blocking)

    # ---- writing

    def apply(self, writes: Sequence[Write]) -> Revisions:
        """All writes in one commit, or none. Returns each revision; 0 for the deletion of what was not there."""
        checked = [check_write(write) for write in writes]
        if len({write.key for write in checked}) != len(checked):
            raise ValueError("a batch may write each key once")
        revisions, identity = self._work(lambda cursor: self._apply(cursor, checked))
        self._publish(checked, revisions, identity)
        return revisions

    def _apply(self, cursor: Any, writes: Sequence[Write]) -> tuple[Revisions, str]:
        last, identity = self._take_turn(cursor)
        cursor.execute(
            "SELECT key, revision FROM deia_store_entries WHERE namespace = %s AND key = ANY(%s) AND value IS NOT NULL",
            (self._space, [write.key for write in writes]),
        )
        found = dict(cursor.fetchall())
        for write in writes:
            if write.if_revision is not None and write.if_revision != found.get(write.key, 0):
                raise StaleRevision(write.key, write.if_revision, found.get(write.key, 0))
        fields = {write.key: write.value for write in writes if write.key.startswith(PAGE_PREFIX)}
        if fields:
            cursor.execute(
                "SELECT key, length(value) FROM deia_store_entries WHERE namespace = %s AND key >= %s "
                "AND key < 'page0' AND value IS NOT NULL",
                (self._space, PAGE_PREFIX),
            )
            check_page_fields(dict(cursor.fetchall()), fields)
        revisions: Revisions = []
        for write in writes:
            if write.value is None and write.key not in found:
                revisions.append(0)
                continue
            last += 1
            revisions.append(last)
            cursor.execute(
                "INSERT INTO deia_store_entries VALUES (%s, %s, %s, %s, clock_timestamp()) "
                "ON CONFLICT (namespace, key) "
                "DO UPDATE SET value = excluded.value, revision = excluded.revision, at = excluded.at",
                (self._space, write.key, write.value, last),
            )
        self._end_turn(cursor, last)
        return revisions, identity

    def _take_turn(self, cursor: Any) -> tuple[int, str]:
        cursor.execute("SELECT revision, identity FROM deia_store_meta WHERE namespace = %s FOR UPDATE", (self._space,))
        row = cursor.fetchone()
        if row is None:
            raise NamespaceGone
        return int(row[0]), str(row[1])

    def _end_turn(self, cursor: Any, last: int) -> None:
        keep = float(self._settings.tombstones)
        cursor.execute(
            "UPDATE deia_store_meta SET revision = %s WHERE namespace = %s "
            "RETURNING purged < clock_timestamp() - make_interval(secs => %s), pg_notify(%s, namespace)",
            (last, self._space, keep / 4, CHANNEL),
        )
        if cursor.fetchone()[0]:
            cursor.execute(
                "WITH gone AS (DELETE FROM deia_store_entries WHERE namespace = %s AND value IS NULL "
                "AND at < clock_timestamp() - make_interval(secs => %s) RETURNING revision) "
                "UPDATE deia_store_meta SET purged = clock_timestamp(), "
                "horizon = greatest(horizon, (SELECT max(revision) FROM gone)) WHERE namespace = %s",
                (self._space, keep, self._space),
            )

    def _publish(self, writes: Sequence[Write], revisions: Revisions, identity: str) -> None:
        """After the commit, before the acknowledgement."""
        if self._page is None:
            return
        done = [(write, revision) for write, revision in zip(writes, revisions, strict=True) if revision]
        fields = [
            (write.key[len(PAGE_PREFIX) :], write.value, revision)
            for write, revision in done
            if write.key.startswith(PAGE_PREFIX)
        ]
        try:
            self._page.open()
            self._page.publish(fields, areas={area_of(write.key): revision for write, revision in done}, store=identity)
        except (OSError, ValueError) as error:
            self._notes["page"] = f"the home's page can't be written ({error}): workers see changes by polling only"
        else:
            self._notes.pop("page", None)

    # ---- leases

    def lease_take(self, name: str, ttl: float, holder: str) -> Grant | None:
        """Take the lease, or None when somebody holds it. `ttl` in seconds, on the server's clock."""
        check_key(name)
        check_ttl(ttl)

        def take(cursor: Any) -> Grant | None:
            last, _ = self._take_turn(cursor)
            cursor.execute(
                "INSERT INTO deia_store_leases VALUES (%s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s)) "
                "ON CONFLICT (namespace, name) DO UPDATE SET holder = excluded.holder, token = excluded.token, "
                "expires = excluded.expires WHERE deia_store_leases.expires <= clock_timestamp()",
                (self._space, name, holder, last + 1, float(ttl)),
            )
            if not cursor.rowcount:
                return None
            self._end_turn(cursor, last + 1)
            return Grant(name, holder, last + 1)

        return self._work(take)

    def lease_renew(self, grant: Grant, ttl: float) -> bool:
        """Extend a lease; False when it was lost."""
        return self._count(
            "UPDATE deia_store_leases SET expires = clock_timestamp() + make_interval(secs => %s) "
            "WHERE namespace = %s AND name = %s AND token = %s AND expires > clock_timestamp()",
            float(ttl), self._space, grant.name, grant.token,
        )  # fmt: skip

    def lease_release(self, grant: Grant) -> None:
        """Give a lease back; harmless when it was lost."""
        self._count(
            "DELETE FROM deia_store_leases WHERE namespace = %s AND name = %s AND token = %s",
            self._space, grant.name, grant.token,
        )  # fmt: skip

    # ---- opening and closing

    def start(self) -> None:
        """Connect and make the tables where they are missing. Raises StoreError."""
        self.identity()

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        self._session.close()

    def health(self) -> Sequence[str]:
        """What is wrong or worth knowing, in sentences; empty when nothing is."""
        return list(self._notes.values())

    # ---- the path that the methods above share

    def _rows(self, statement: str, *arguments: object, named: bool = True) -> Rows:
        def work(cursor: Any) -> Any:
            cursor.execute(statement, (self._space, *arguments) if named else arguments)
            return cursor.fetchall()

        return self._work(work)

    def _meta(self, column: str) -> Any:
        def work(cursor: Any) -> Any:
            cursor.execute(f"SELECT {column} FROM deia_store_meta WHERE namespace = %s", (self._space,))  # noqa: S608
            row = cursor.fetchone()
            if row is None:
                raise NamespaceGone
            return row[0]

        return self._work(work)

    def _count(self, statement: str, *arguments: object) -> bool:
        def work(cursor: Any) -> bool:
            cursor.execute(statement, arguments)
            return bool(cursor.rowcount)

        return self._work(work)
