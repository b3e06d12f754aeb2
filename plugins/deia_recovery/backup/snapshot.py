"""Taking a snapshot, in a process of its own: the serving loop never notices.

Everything is read in one read transaction, cut into chunks, stored unless it is stored already, read again and
compared; the manifest comes last. `python -m deia_recovery.backup` does it with a job on standard input.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import tempfile
import time
from pathlib import Path

import attrs

from deia_recovery.backup.chunks import pack, unpack
from deia_recovery.backup.dump import chunks_of
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.manifest import (
    ChunkRef,
    FilePart,
    Manifest,
    ProtectedPart,
    TablePart,
    manifest_name,
    root_hash,
    write_manifest,
)
from deia_recovery.backup.vault import FolderVault, chunk_name
from deia_recovery.engine.connections import apart, quoted
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.schema import FORMAT, TABLES
from deia_recovery.errors import BackupError


@attrs.frozen
class FileJob:
    """A protected file, folder or database to be read."""

    name: str
    path: str
    kind: str


@attrs.frozen
class Job:
    """What the process is told. `key` is the master key in hex."""

    database: str
    vault: str
    store: str
    generation: int
    what: tuple[str, ...]
    chunk: int
    key: str
    encrypt: bool
    now: float
    files: tuple[FileJob, ...] = ()
    nice: int = 10


@attrs.frozen
class Result:
    """What it did. `healed` chunks were found damaged and written anew; `missing` says which protected things are not
    there, and so not in it; `error` "" when all went well."""

    id: str = ""
    position: int = 0
    at: float = 0.0
    chunks: int = 0
    chunks_new: int = 0
    bytes_new: int = 0
    rows: int = 0
    healed: int = 0
    root: str = ""
    seconds: float = 0.0
    missing: tuple[str, ...] = ()
    error: str = ""


class Writer:
    """Stores chunks once, and proves each by reading it again."""

    def __init__(self, vault: FolderVault, keys: KeyRing) -> None:
        self.vault = vault
        self.kept: set[str] = set()
        self.keys = keys
        self.new = self.bytes_new = self.total = self.healed = 0

    def add(self, plain: bytes) -> ChunkRef:
        name, stored = pack(plain, self.keys)
        where = chunk_name(name)
        self.total += 1
        if self.vault.size(where) is not None:
            if self._reads(name, where, plain):
                self.kept.add(where)
                return ChunkRef(name, self.vault.size(where) or len(stored), len(plain))
            self.healed += 1
        self.vault.replace(where, stored)
        if not self._reads(name, where, plain):
            raise BackupError(f"chunk {name} reads back differently than it was written: the disk is not to be trusted")
        self.new += 1
        self.bytes_new += len(stored)
        return ChunkRef(name, len(stored), len(plain))

    def _reads(self, name: str, where: str, plain: bytes) -> bool:
        try:
            return unpack(name, self.vault.get(where), self.keys) == plain
        except (ValueError, OSError):
            return False


def read_tables(connection: sqlite3.Connection, names: list[str], size: int, writer: Writer) -> dict[str, TablePart]:
    """The tables as chunks, inside the caller's read transaction."""
    parts: dict[str, TablePart] = {}
    for table in TABLES:
        if table.name in names:
            rows, refs = 0, []
            for plain, count in chunks_of(connection, table, size):
                refs.append(writer.add(plain))
                rows += count
            parts[table.name] = TablePart(table.names, rows, tuple(refs))
    return parts


def tables_for(what: tuple[str, ...]) -> list[str]:
    """The tables that the parts named in a schedule mean."""
    return [table.name for table in TABLES if "all" in what or table.scope in what]


def take(job: Job) -> Result:
    """Do the job. Raises what goes wrong; then there is no manifest, so no snapshot."""
    begun = time.monotonic()
    keys = KeyRing(bytes.fromhex(job.key), encrypt=job.encrypt)
    vault = FolderVault(Path(job.vault))
    writer = Writer(vault, keys)
    files: dict[str, ProtectedPart] = {}
    missing: list[str] = []
    for item in job.files if "all" in job.what or "files" in job.what else ():
        try:
            files[item.name] = _protected(item, job.chunk, writer)
        except FileNotFoundError:  # must not keep the state from being backed up
            missing.append(f"{item.name} ({item.path}) is not there")
    database = Path(job.database)
    use = FileLock(database.parent.parent / "use.lock")
    use.acquire(shared=True)
    try:
        with apart(database) as connection:
            connection.execute("BEGIN")
            row = connection.execute("SELECT position, at FROM changes ORDER BY position DESC LIMIT 1").fetchone()
            position, at = row or (0, 0)
            tables = read_tables(connection, tables_for(job.what), job.chunk, writer)
            connection.execute("COMMIT")
    finally:
        use.close()
    vault.confirm(writer.kept)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(job.now))
    manifest = Manifest(
        id=f"{stamp}-{position:012d}-{secrets.token_hex(3)}",
        store=job.store,
        generation=job.generation,
        position=position,
        at=at / 1000,
        taken=job.now,
        what=job.what,
        schema=FORMAT,
        chunk_size=job.chunk,
        tables=tables,
        files=files,
        root=root_hash(tables, files),
        key_id=keys.id,
        encrypted=job.encrypt,
    )
    data = write_manifest(manifest, keys)
    vault.replace(manifest_name(manifest.id), data)
    if vault.get(manifest_name(manifest.id)) != data:
        raise BackupError("the manifest reads back differently than it was written")
    return Result(
        id=manifest.id,
        position=position,
        at=manifest.at,
        chunks=writer.total,
        chunks_new=writer.new,
        bytes_new=writer.bytes_new,
        rows=sum(part.rows for part in tables.values()),
        healed=writer.healed,
        root=manifest.root,
        seconds=time.monotonic() - begun,
        missing=tuple(missing),
    )


# -- files --------------------------------------------------------------------------------------------------------


def _protected(item: FileJob, size: int, writer: Writer) -> ProtectedPart:
    path = Path(item.path)
    kind = item.kind
    if not path.exists():
        raise FileNotFoundError(path)
    if kind == "auto":
        kind = "folder" if path.is_dir() else "sqlite" if _is_sqlite(path) else "file"
    if kind == "sqlite":
        return ProtectedPart(kind, str(path), (_database(path, size, writer),))
    if kind == "file":
        return ProtectedPart(kind, str(path), (_file(path, path.name, size, writer),))
    found = []
    for folder, names, files in os.walk(path):
        names.sort()
        for name in sorted(files):
            one = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):  # it went while the folder was read
                mode = one.lstat().st_mode
                if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    found.append(_file(one, one.relative_to(path).as_posix(), size, writer))
    return ProtectedPart("folder", str(path), tuple(found))


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\x00"


def _file(path: Path, name: str, size: int, writer: Writer) -> FilePart:
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        return FilePart(name, 0o777, 0, (), target=str(path.readlink()))
    refs = []
    total = 0
    with path.open("rb") as stream:
        while piece := stream.read(size):
            refs.append(writer.add(piece))
            total += len(piece)
    return FilePart(name, stat.S_IMODE(info.st_mode), total, tuple(refs))


def _database(path: Path, size: int, writer: Writer) -> FilePart:
    """A copy by SQLite's backup interface: consistent whoever writes, which a file copy is not."""
    with tempfile.TemporaryDirectory(prefix="deia-backup-") as scratch:
        copy = Path(scratch) / "copy.db"
        source = sqlite3.connect(f"file:{quoted(path)}?mode=ro", uri=True)
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            target.close()
            source.close()
        found = _file(copy, path.name, size, writer)
        return attrs.evolve(found, mode=stat.S_IMODE(path.stat().st_mode))
