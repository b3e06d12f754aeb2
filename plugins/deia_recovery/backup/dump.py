"""The rows of the state as chunks, cut where the content says so, and back into tables.

Rows come in key order. A chunk ends at a row whose key hashes to a cut, so a new row in the middle changes one chunk
and not all that follow. The same content always gives the same chunks.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from deia_recovery.engine.schema import TABLE, Table

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, list[list[Any]]]).decode

_CUT = 1024
"""One key in so many ends a chunk, once it has a quarter of its size."""


def chunks_of(connection: sqlite3.Connection, table: Table, size: int) -> Iterator[tuple[bytes, int]]:
    """(plain chunk, rows) of one table, about `size` bytes each, inside the caller's read transaction."""
    columns = ", ".join(table.names)
    order = ", ".join(table.key)
    cursor = connection.execute(f"SELECT {columns} FROM {table.name} ORDER BY {order}")  # noqa: S608
    keys = len(table.key)
    name = table.name
    least, most = size // 4, size * 4
    rows: list[Any] = []
    held = 0
    crc = zlib.crc32
    while batch := cursor.fetchmany(512):
        for row in batch:
            rows.append(row)
            held += 40 + sum([len(value) for value in row if type(value) is bytes or type(value) is str])
            if held >= least and (crc(repr(row[:keys]).encode()) % _CUT == 0 or held >= most):
                yield _encode((name, rows)), len(rows)
                rows, held = [], 0
    if rows:
        yield _encode((name, rows)), len(rows)


def load_rows(connection: sqlite3.Connection, table: str, columns: Iterable[str], plain: bytes) -> int:
    """Insert a chunk's rows. Raises ValueError when the chunk belongs to another table or does not fit it."""
    found, rows = _decode(plain)
    names = tuple(columns)
    if found != table:
        raise ValueError(f"it holds rows of {found!r}, not of {table!r}")
    unknown = [name for name in names if name not in TABLE[table].names]
    if unknown:
        raise ValueError(f"table {table} has no column {', '.join(unknown)}")
    marks = ", ".join("?" * len(names))
    connection.executemany(f"INSERT INTO {table}({', '.join(names)}) VALUES({marks})", rows)
    return len(rows)
