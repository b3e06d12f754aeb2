"""A group of plain registry rows as one statement, which is the whole commit.

Python's sqlite3 gives the interpreter's lock up around each step of a statement and has to win it back after it. With
a busy loop beside it that costs more than the work itself: so rows and change log go in by a single INSERT into a
view, whose triggers do the rest, and SQLite commits at the statement's end; the lock is asked for once per commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain

from deia_recovery.engine.schema import ENTRY_SQL

MOST = 512
"""Rows that one statement takes."""

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, MOST)
"""Rows of the statements that are prepared; a group takes the next larger one, filled up with rows of NULLs."""

_ROW = "(?,?,?,?,?)"

_PREPARE = (
    "CREATE TEMP VIEW batch AS SELECT store, key, value, revision, at FROM main.registry",
    "CREATE TEMP TRIGGER batch_row INSTEAD OF INSERT ON batch WHEN NEW.store IS NOT NULL BEGIN "
    + ENTRY_SQL.replace("?, ?, ?, ?, ?", "NEW.store, NEW.key, NEW.value, NEW.revision, NEW.at")
    + "; END",
    "CREATE TEMP TRIGGER batch_log INSTEAD OF INSERT ON batch WHEN NEW.store IS NULL AND NEW.revision IS NOT NULL "
    "BEGIN INSERT INTO changes(position, at, ops) VALUES(NEW.revision, NEW.at, NEW.value); END",
)


def _statement(rows: int) -> str:
    return f"INSERT INTO batch(store, key, value, revision, at) VALUES{','.join([_ROW] * (rows + 1))}"


_STATEMENTS = {size: _statement(size) for size in _SIZES}

_BY_COUNT = [0] * (MOST + 1)
for _size in reversed(_SIZES):
    _BY_COUNT[: _size + 1] = [_size] * (_size + 1)

_NOTHING = [None] * 5


def prepare(connection: sqlite3.Connection) -> None:
    """Make the view and its triggers, in the connection's temporary schema (in memory)."""
    for statement in _PREPARE:
        connection.execute(statement)


def commit_rows(
    connection: sqlite3.Connection, rows: Sequence[tuple[str, str, bytes, int, int]], at: int, ops: bytes
) -> None:
    """Commit up to MOST rows (store, key, value, revision, at) and the log entry that holds them as `ops`."""
    count = len(rows)
    size = _BY_COUNT[count]
    parameters: list[object] = [
        *chain.from_iterable(rows),
        *_NOTHING * (size - count),
        None,
        None,
        ops,
        rows[-1][3],
        at,
    ]
    connection.execute(_STATEMENTS[size], parameters)
