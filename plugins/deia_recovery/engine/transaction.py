"""What a write function is given: rows to read and change, inside one commit.

Every change is executed and written down in the same step, so the log that other workers and backups follow can't
differ from the rows.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from deia_recovery.engine.schema import (
    DELETE,
    ENTRY,
    ENTRY_SQL,
    PUT,
    TABLE,
    UPDATE,
    Change,
    delete_sql,
    put_sql,
    update_sql,
)


class Tx:
    """One commit in the making. Valid on the thread that commits, during the call that received it.

    Attributes:
        now: milliseconds of Unix time; never goes back from one commit to the next, whatever the clock does.
        begun: the position of the newest change before this commit.
        position: the position of the newest change.
        changes: what was changed so far, in order.
        notes: what to tell subscribers once it is on disk.
    """

    __slots__ = ("_execute", "begun", "changes", "connection", "generation", "notes", "now", "position")

    def __init__(self, connection: sqlite3.Connection, position: int, now: int, generation: int) -> None:
        self.connection = connection
        self._execute = connection.execute
        self.begun = self.position = position
        self.now = now
        self.generation = generation
        self.changes: list[Change] = []
        self.notes: list[Any] = []

    def one(self, sql: str, *parameters: Any) -> Any:
        """The first row, or None."""
        return self._execute(sql, parameters).fetchone()

    def all(self, sql: str, *parameters: Any) -> list[Any]:
        """All rows."""
        return self._execute(sql, parameters).fetchall()

    def put(self, table: str, key: tuple[Any, ...], columns: dict[str, Any]) -> int:
        """Insert or replace a row. Returns the position of this change."""
        self._execute(put_sql(TABLE[table], tuple(columns)), (*key, *columns.values()))
        self.changes.append((PUT, table, key, columns))
        self.position = position = self.position + 1
        return position

    def put_registry(self, store: str, key: str, value: bytes) -> int:
        """Insert or replace a registry row, whose revision is the position of this change."""
        self.position = position = self.position + 1
        row = (store, key, value, position, self.now)
        self._execute(ENTRY_SQL, row)
        self.changes.append((ENTRY, "registry", row, {}))
        return position

    def put_entries(self, rows: list[tuple[str, str, bytes, int, int]]) -> None:
        """Write many registry rows (store, key, value, revision, at), whose revisions go on from `position`."""
        self.connection.executemany(ENTRY_SQL, rows)
        self.note_entries(rows)

    def note_entries(self, rows: list[tuple[str, str, bytes, int, int]]) -> None:
        """Take down registry rows that are written elsewhere in the same commit."""
        self.changes.extend([(ENTRY, "registry", row, _NO_COLUMNS) for row in rows])
        self.position += len(rows)

    def update(self, table: str, key: tuple[Any, ...], columns: dict[str, Any]) -> int:
        """Set columns of one row."""
        self._execute(update_sql(TABLE[table], tuple(columns)), (*columns.values(), *key))
        self.changes.append((UPDATE, table, key, columns))
        self.position = position = self.position + 1
        return position

    def delete(self, table: str, key: tuple[Any, ...]) -> int:
        """Delete one row."""
        self._execute(delete_sql(TABLE[table]), key)
        self.changes.append((DELETE, table, key, {}))
        self.position = position = self.position + 1
        return position

    @property
    def token(self) -> int:
        """A number above every earlier one of this state, over all its generations: for fencing."""
        return (self.generation << 40) | (self.position + 1)

    def note(self, event: Any) -> None:
        """Have `event` emitted after the commit."""
        self.notes.append(event)


_NO_COLUMNS: dict[str, Any] = {}
