"""Generations: the folder that holds one life of the state, and the file that says which one is current.

A generation is built beside, synced, and only then named; a restore makes the next one and leaves the damaged one
where it is. `current` is replaced whole, so a crash leaves the old or the new one in force.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec

from deia_recovery.engine.connections import apart
from deia_recovery.engine.engine import DATABASE
from deia_recovery.engine.files import make_folder, sync_file, sync_folder, write_whole
from deia_recovery.engine.pages import PageSums
from deia_recovery.engine.schema import FORMAT, create_statements
from deia_recovery.errors import StateDamaged, StateError, StateUnavailable

CURRENT = "current"


@attrs.frozen
class Generation:
    """Which life of the state is in force.

    `store` names the state for its whole life, over all generations; `number` grows with each restore; `origin`
    says where this one came from ("new", or the snapshot and position it was restored from); `parent` and `position`
    are the generation it was restored from and how far (0: from none), `since` when (Unix seconds).
    """

    number: int
    store: str
    folder: Path
    origin: str = "new"
    parent: int = 0
    position: int = 0
    since: float = 0.0


@attrs.frozen
class _Document:
    """What `current` holds."""

    generation: int
    store: str
    origin: str = ""
    parent: int = 0
    position: int = 0
    since: float = 0.0
    format: int = 1


def folder_name(number: int) -> str:
    return f"g{number:06d}"


def read_current(root: Path) -> Generation | None:
    """The generation in force, None where there never was one. Raises StateDamaged when it can't be told."""
    path = root / CURRENT
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, ValueError) as error:
        raise StateDamaged(f"{path} does not say which generation of the state is in force: {error}") from error
    folder = root / folder_name(found.generation)
    return Generation(
        found.generation, found.store, folder, found.origin, found.parent, found.position, float(found.since)
    )


def set_current(root: Path, generation: Generation) -> None:
    """Put `generation` in force, durably."""
    one = generation
    document = _Document(one.number, one.store, one.origin, one.parent, one.position, one.since)
    write_whole(root / CURRENT, msgspec.json.encode(document) + b"\n")


def newest_number(root: Path) -> int:
    """The highest generation number that has a folder here (0 without any)."""
    numbers = [int(p.name[1:7]) for p in root.glob("g[0-9][0-9][0-9][0-9][0-9][0-9]*") if p.name[1:7].isdigit()]
    return max(numbers, default=0)


def build(
    root: Path, number: int, store: str, origin: str, fill: Callable[[sqlite3.Connection], None] | None = None
) -> Generation:
    """Make a generation's folder, with what `fill` writes into it, complete and synced before it gets its name.

    A half-built one of an earlier attempt is removed: it never was in force.
    """
    make_folder(root)
    folder = root / folder_name(number)
    beside = root / f"{folder_name(number)}.building"
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(mode=0o700)
    database = beside / DATABASE
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")
        connection.execute("BEGIN")
        for statement in create_statements():
            connection.execute(statement)
        meta = {"format": str(FORMAT), "store": store, "generation": str(number), "origin": origin}
        connection.executemany("INSERT INTO meta VALUES(?, ?)", meta.items())
        if fill is not None:
            fill(connection)
        connection.execute("COMMIT")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":  # SQLite raises nothing when its write fails here
            raise StateUnavailable(f"{database} can't be given a write-ahead log (it stays '{mode}'); look at the disk")
    finally:
        connection.close()
    os.chmod(database, 0o600)  # noqa: PTH101 - beside the descriptor calls
    fd = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_file(fd)
        PageSums(database).take(fd)
    finally:
        os.close(fd)
    sync_folder(beside)
    if folder.exists():
        raise StateError(f"{folder} exists already: a generation is never written over")
    beside.rename(folder)
    sync_folder(root)
    return Generation(number, store, folder, origin)


def create_first(root: Path) -> Generation:
    """A new, empty state, put in force."""
    number = newest_number(root) + 1
    generation = build(root, number, str(uuid.uuid4()), "new")
    set_current(root, generation)
    return generation


def read_meta(database: Path) -> dict[str, str]:
    """The meta rows of a database. Raises StateDamaged when it can't be read, StateError for a newer format."""
    try:
        with apart(database) as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta"))
    except (sqlite3.Error, OSError) as error:
        raise StateDamaged(f"{database} can't be read: {error}") from error
    check_format(int(meta.get("format", "0") or 0), str(database))
    return meta


def check_format(found: int, where: str) -> None:
    """Refuse what a newer release wrote."""
    if found > FORMAT:
        raise StateError(
            f"{where} was written by a newer release (format {found}, this one reads up to {FORMAT}); nothing was "
            "touched: run the release that wrote it, or a newer one"
        )
