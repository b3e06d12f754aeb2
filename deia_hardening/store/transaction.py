"""What one commit of the SQLite store does: entries, tombstones, revisions and leases, in SQL.

A `Transaction` lives inside BEGIN IMMEDIATE. Every method decides before its first write, so one that refuses
leaves the others of the same commit untouched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from deia_hardening.store.base import Grant, StaleRevision, Write, area_of
from deia_hardening.store.epoch import room_for

PAGE_PREFIX: Final = "page/"
"""Keys below this are shown on the home's page; their values are JSON."""


class Transaction:
    """One open transaction. `areas` and `page` collect what the page must show after the commit."""

    def __init__(self, connection: sqlite3.Connection, wall: float) -> None:
        self._connection = connection
        self._wall = wall
        (self._revision,) = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
        self._before = self._revision
        self._touched = False
        self.areas: dict[str, int] = {}
        self.page: list[tuple[str, bytes | None, int]] = []

    def finish(self) -> bool:
        """Store the counter; whether there is anything to commit."""
        if self._revision != self._before:
            self._connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (self._revision,))
        return self._touched or self._revision != self._before

    def _next(self) -> int:
        self._revision += 1
        return int(self._revision)

    # ---- entries

    def apply(self, writes: Sequence[Write]) -> list[int]:
        present: dict[str, tuple[bool, int]] = {}
        for write in writes:
            row = self._connection.execute(
                "SELECT value IS NOT NULL, revision FROM entries WHERE key = ?", (write.key,)
            ).fetchone()
            exists, revision = (bool(row[0]), int(row[1])) if row else (False, 0)
            found = revision if exists else 0
            if write.if_revision is not None and write.if_revision != found:
                raise StaleRevision(write.key, write.if_revision, found)
            present[write.key] = (exists, revision)
        if len(present) != len(writes):
            raise ValueError("a batch may write each key once")
        self._check_page(writes)
        return [self._write(write, *present[write.key]) for write in writes]

    def _write(self, write: Write, exists: bool, _: int) -> int:
        if write.value is None and not exists:
            return 0
        revision = self._next()
        self._connection.execute(
            "INSERT INTO entries (key, value, revision, at) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, revision = excluded.revision, at = excluded.at",
            (write.key, write.value, revision, self._wall),
        )
        self.areas[area_of(write.key)] = revision
        if write.key.startswith(PAGE_PREFIX):
            self.page.append((write.key[len(PAGE_PREFIX) :], write.value, revision))
        return revision

    def _check_page(self, writes: Sequence[Write]) -> None:
        fields = {write.key: write.value for write in writes if write.key.startswith(PAGE_PREFIX)}
        if not fields:
            return
        rows = self._connection.execute(
            "SELECT key, length(value) FROM entries WHERE key >= ? AND key < ? AND value IS NOT NULL",
            (PAGE_PREFIX, "page0"),
        )
        check_page_fields(dict(rows.fetchall()), fields)

    def purge(self, keep: float) -> None:
        """Forget deletions older than `keep` seconds."""
        old = self._wall - keep
        row = self._connection.execute(
            "SELECT max(revision) FROM entries WHERE value IS NULL AND at < ?", (old,)
        ).fetchone()
        if row[0] is not None:
            self._connection.execute("DELETE FROM entries WHERE value IS NULL AND at < ?", (old,))
            self._connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'horizon'", (row[0],))

    # ---- leases

    def lease_take(self, name: str, ttl: float, holder: str, now: float, boot: str) -> Grant | None:
        row = self._connection.execute("SELECT expires, ttl, boot FROM leases WHERE name = ?", (name,)).fetchone()
        if row is not None and lease_is_live(*row, now=now, now_boot=boot):
            return None
        token = self._next()
        self._connection.execute(
            "INSERT OR REPLACE INTO leases (name, holder, token, expires, ttl, boot) VALUES (?, ?, ?, ?, ?, ?)",
            (name, holder, token, now + ttl, ttl, boot),
        )
        return Grant(name, holder, token)

    def lease_renew(self, grant: Grant, ttl: float, now: float, boot: str) -> bool:
        row = self._connection.execute(
            "SELECT expires, ttl, boot FROM leases WHERE name = ? AND token = ?", (grant.name, grant.token)
        ).fetchone()
        if row is None or not lease_is_live(*row, now=now, now_boot=boot):
            return False
        self._connection.execute(
            "UPDATE leases SET expires = ?, ttl = ? WHERE name = ? AND token = ?",
            (now + ttl, ttl, grant.name, grant.token),
        )
        self._touched = True
        return True

    def lease_release(self, grant: Grant) -> None:
        gone = self._connection.execute("DELETE FROM leases WHERE name = ? AND token = ?", (grant.name, grant.token))
        self._touched = self._touched or gone.rowcount > 0


def lease_is_live(expires: float, ttl: float, boot: str, *, now: float, now_boot: str) -> bool:
    """Whether a lease still counts. One of an earlier boot, or that ends later than it could, does not. Pure."""
    return boot == now_boot and now < expires <= now + ttl


def check_page_fields(lengths: dict[str, int], fields: dict[str, bytes | None]) -> None:
    """Refuse with ValueError what the page could not show: no JSON, or more than fits. Pure.

    `lengths` are the present keys below `page/` with the lengths of their values.
    """
    after = dict(lengths)
    for key, value in fields.items():
        after.pop(key, None)
        if value is not None:
            try:
                msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"the value of '{key}' must be JSON, since it goes on the page: {error}") from None
            after[key] = len(value)
    if not room_for({key[len(PAGE_PREFIX) :]: length for key, length in after.items()}):
        raise ValueError("the page's fields together are too long: 3 KiB fit; nothing was written")
