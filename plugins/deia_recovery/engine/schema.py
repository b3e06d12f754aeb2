"""The tables of the state database, and how one change to a row is written, logged and replayed.

Every write goes through `Change`: it becomes SQL here and one entry of the `changes` table in the same commit.
That log is what other workers' caches follow and what is shipped between snapshots. Release N reads format N-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

FORMAT = 1
"""The version of these tables; a database with a higher one is refused."""


@attrs.frozen
class Table:
    """One table: its key columns, its other columns (with SQL types), and whether a snapshot holds it."""

    name: str
    key: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    scope: str
    indices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)


TABLES: tuple[Table, ...] = (
    Table(
        "registry",
        ("store", "key"),
        (
            ("store", "TEXT NOT NULL"),
            ("key", "TEXT NOT NULL"),
            ("value", "BLOB NOT NULL"),
            ("revision", "INTEGER NOT NULL"),
            ("at", "INTEGER NOT NULL"),
        ),
        scope="registry",
    ),
    Table(
        "assignment",
        ("store", "task"),
        (
            ("store", "TEXT NOT NULL"),
            ("task", "TEXT NOT NULL"),
            ("bot", "TEXT NOT NULL"),
            ("since", "INTEGER NOT NULL"),
            ("actor", "TEXT NOT NULL"),
            ("note", "TEXT NOT NULL"),
            ("token", "INTEGER NOT NULL"),
        ),
        scope="assignments",
        indices=("CREATE INDEX assignment_by_bot ON assignment(store, bot)",),
    ),
    Table(
        "task",
        ("id",),
        (
            ("id", "TEXT NOT NULL"),
            ("queue", "TEXT NOT NULL"),
            ("state", "TEXT NOT NULL"),
            ("seq", "INTEGER NOT NULL"),
            ("priority", "INTEGER NOT NULL"),
            ("not_before", "INTEGER NOT NULL"),
            ("submitted", "INTEGER NOT NULL"),
            ("expires", "INTEGER"),
            ("key", "TEXT"),
            ("conversation", "TEXT"),
            ("split_key", "TEXT NOT NULL"),
            ("version", "TEXT NOT NULL"),
            ("attempts", "INTEGER NOT NULL"),
            ("max_attempts", "INTEGER NOT NULL"),
            ("lease_until", "INTEGER"),
            ("lease", "INTEGER NOT NULL"),
            ("token", "INTEGER NOT NULL"),
            ("worker", "TEXT NOT NULL"),
            ("bot", "TEXT NOT NULL"),
            ("actor", "TEXT NOT NULL"),
            ("cancel", "INTEGER NOT NULL"),
            ("finished", "INTEGER"),
            ("error", "TEXT NOT NULL"),
            ("events", "INTEGER NOT NULL"),
        ),
        scope="tasks",
        indices=(
            "CREATE INDEX task_ready ON task(queue, priority DESC, seq) WHERE state = 'ready'",
            "CREATE INDEX task_delayed ON task(queue, not_before) WHERE state = 'delayed'",
            "CREATE INDEX task_leased ON task(lease_until) WHERE state = 'leased'",
            "CREATE INDEX task_expiring ON task(expires) WHERE expires IS NOT NULL AND finished IS NULL",
            "CREATE UNIQUE INDEX task_key ON task(queue, key) WHERE key IS NOT NULL",
            "CREATE INDEX task_conversation ON task(queue, conversation, seq) "
            "WHERE conversation IS NOT NULL AND finished IS NULL",
            "CREATE INDEX task_finished ON task(queue, finished) WHERE finished IS NOT NULL",
            "CREATE INDEX task_bot ON task(bot) WHERE state = 'leased'",
        ),
    ),
    Table(
        "task_part",
        ("task", "part"),
        (("task", "TEXT NOT NULL"), ("part", "TEXT NOT NULL"), ("value", "BLOB NOT NULL")),
        scope="tasks",
    ),
    Table(
        "task_event",
        ("task", "number"),
        (
            ("task", "TEXT NOT NULL"),
            ("number", "INTEGER NOT NULL"),
            ("at", "INTEGER NOT NULL"),
            ("value", "BLOB NOT NULL"),
        ),
        scope="tasks",
    ),
    Table(
        "object",
        ("name",),
        (("name", "TEXT NOT NULL"), ("value", "BLOB NOT NULL"), ("at", "INTEGER NOT NULL")),
        scope="objects",
    ),
)

TABLE: Mapping[str, Table] = {table.name: table for table in TABLES}

SCOPES: tuple[str, ...] = ("registry", "assignments", "tasks", "objects")


def create_statements() -> list[str]:
    """The SQL that makes an empty state database."""
    statements = [
        "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE changes(position INTEGER PRIMARY KEY, at INTEGER NOT NULL, ops BLOB NOT NULL)",
    ]
    for table in TABLES:
        columns = ", ".join(f"{name} {kind}" for name, kind in table.columns)
        key = ", ".join(table.key)
        rowless = "" if table.name == "task_part" else " WITHOUT ROWID"
        statements.append(f"CREATE TABLE {table.name}({columns}, PRIMARY KEY({key})){rowless}")
        statements.extend(table.indices)
    return statements


PUT, UPDATE, DELETE, ENTRY = 0, 1, 2, 3

Change = tuple[int, str, tuple[Any, ...], dict[str, Any]]
"""(PUT | UPDATE | DELETE, table, key values, other columns): one change to one row.

ENTRY is a registry row in the shortest form, since it is by far the most frequent: (ENTRY, "registry",
(store, key, value, revision, at), {}).
"""

_statements: dict[Any, str] = {}


def put_sql(table: Table, columns: tuple[str, ...]) -> str:
    """SQL to insert or replace a row given its key and then `columns`."""
    cached = _statements.get((PUT, table.name, columns))
    if cached is None:
        names = (*table.key, *columns)
        _known(table, names)
        action = ", ".join(f"{name} = excluded.{name}" for name in columns)
        cached = (
            f"INSERT INTO {table.name}({', '.join(names)}) VALUES({', '.join('?' * len(names))}) "
            f"ON CONFLICT({', '.join(table.key)}) DO " + (f"UPDATE SET {action}" if action else "NOTHING")
        )
        _statements[PUT, table.name, columns] = cached
    return cached


def update_sql(table: Table, columns: tuple[str, ...]) -> str:
    """SQL to set `columns` of one row; the key's values come last."""
    cached = _statements.get((UPDATE, table.name, columns))
    if cached is None:
        _known(table, columns)
        action = ", ".join(f"{name} = ?" for name in columns)
        where = " AND ".join(f"{name} = ?" for name in table.key)
        cached = f"UPDATE {table.name} SET {action} WHERE {where}"  # noqa: S608 - own names only
        _statements[UPDATE, table.name, columns] = cached
    return cached


def delete_sql(table: Table) -> str:
    """SQL to delete one row by its key."""
    cached = _statements.get((DELETE, table.name))
    if cached is None:
        where = " AND ".join(f"{name} = ?" for name in table.key)
        cached = f"DELETE FROM {table.name} WHERE {where}"  # noqa: S608 - own names only
        _statements[DELETE, table.name] = cached
    return cached


def _known(table: Table, names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in table.names]
    if unknown:
        raise ValueError(f"table {table.name} has no column {', '.join(unknown)}")


def sql_of(change: Change) -> tuple[str, tuple[Any, ...]]:
    """A change as a statement and its parameters. Raises ValueError for a table or column that is not ours."""
    kind, name, key, columns = change
    if kind == ENTRY and name == "registry" and len(key) == 5:
        return ENTRY_SQL, tuple(key)
    table = TABLE.get(name)
    if table is None or len(key) != len(table.key):
        raise ValueError(f"no table {name!r} with such a key")
    if kind == PUT:
        return put_sql(table, tuple(columns)), (*key, *columns.values())
    if kind == UPDATE:
        return update_sql(table, tuple(columns)), (*columns.values(), *key)
    if kind == DELETE:
        return delete_sql(table), tuple(key)
    raise ValueError(f"unknown kind of change {kind!r}")


ENTRY_SQL = put_sql(TABLE["registry"], ("value", "revision", "at"))
"""SQL for a registry row: store, key, value, revision, at."""
