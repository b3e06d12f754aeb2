"""Bringing some parts of a snapshot back into the present state, as ordinary changes.

The parts are restored into a scratch database; what differs is written in one commit. So positions, fencing tokens and
shipping go on from where they are, and the other parts are not touched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from deia_recovery.backup.restore import Catalog, Plan, load_tables
from deia_recovery.engine.reading import decode_ops
from deia_recovery.engine.schema import TABLES, Table, sql_of
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import BackupError

PARTS = ("registry", "assignments", "tasks", "objects")


def tables_of(parts: tuple[str, ...]) -> tuple[Table, ...]:
    """The tables of these parts. Raises BackupError for a part that can't be restored by itself."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise BackupError(f"{', '.join(unknown)} can't be restored by itself: choose from {', '.join(PARTS)}")
    return tuple(table for table in TABLES if table.scope in parts)


def fill_some(
    connection: sqlite3.Connection, catalog: Catalog, plan: Plan, tables: tuple[Table, ...], until: float | None
) -> None:
    """Write a plan's rows of `tables`, and the shipped changes to them, into an empty state database."""
    names = {table.name for table in tables}
    load_tables(connection, catalog, plan.snapshot, names)
    position = plan.snapshot.position
    for end, _at, blob in catalog.entries(plan.snapshot, until):
        ops = decode_ops(blob)
        if end - len(ops) != position:
            raise BackupError(f"a shipped change at position {end} does not follow position {position}")
        for change in ops:
            if change[1] in names:
                connection.execute(*sql_of(change))
        position = end


def bring_back(tx: Tx, source: sqlite3.Connection, tables: tuple[Table, ...]) -> dict[str, int]:
    """Make the tables as they are in `source`. Returns how many rows were changed, by table."""
    return {table.name: _bring_back(tx, source, table) for table in tables}


def _bring_back(tx: Tx, source: sqlite3.Connection, table: Table) -> int:
    keys = len(table.key)
    ordered = (*table.key, *(name for name in table.names if name not in table.key))
    sql = f"SELECT {', '.join(ordered)} FROM {table.name} ORDER BY {', '.join(table.key)}"  # noqa: S608 - own names
    wanted, present = source.execute(sql), tx.connection.execute(sql)
    changed: list[tuple[Any, Any]] = list(_differences(table, iter(wanted), iter(present), keys))
    for key, row in changed:
        if row is None:
            tx.delete(table.name, key)
        elif table.name == "registry":
            tx.put_registry(key[0], key[1], row[keys])
        else:
            columns = dict(zip(ordered[keys:], row[keys:], strict=True))
            if "token" in columns:
                columns["token"] = tx.token
            if columns.get("state") == "leased":  # its worker held it in another past
                columns |= {"state": "ready", "lease_until": None, "worker": "", "bot": ""}
            tx.put(table.name, key, columns)
    return len(changed)


def _differences(
    table: Table, wanted: Iterator[tuple[Any, ...]], present: Iterator[tuple[Any, ...]], keys: int
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...] | None]]:
    """(key, the row as it shall be, or None to delete it), from two cursors in key order."""
    compared = keys + 1 if table.name == "registry" else len(table.names)  # a registry's revision is always new
    one, other = next(wanted, None), next(present, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[:keys] < other[:keys]):
            assert one is not None
            yield one[:keys], one
            one = next(wanted, None)
        elif one is None or other[:keys] < one[:keys]:
            yield other[:keys], None
            other = next(present, None)
        else:
            if one[:compared] != other[:compared]:
                yield one[:keys], one
            one, other = next(wanted, None), next(present, None)
