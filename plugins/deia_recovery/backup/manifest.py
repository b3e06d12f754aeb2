"""Manifests: what a snapshot holds, written last, authenticated.

A manifest is one JSON document and its MAC. It names every chunk with its size, so a snapshot is whole exactly when
its manifest verifies and each chunk opens under its name.
"""

from __future__ import annotations

import hashlib

import attrs
import msgspec

from deia_recovery.backup.keys import KeyRing
from deia_recovery.engine.schema import FORMAT
from deia_recovery.errors import BackupError, StateError, WrongKey


@attrs.frozen
class ChunkRef:
    """One chunk: its name, stored bytes, plain bytes."""

    name: str
    stored: int
    plain: int


@attrs.frozen
class TablePart:
    """One table: its columns as written, how many rows, its chunks in order."""

    columns: tuple[str, ...]
    rows: int
    chunks: tuple[ChunkRef, ...]


@attrs.frozen
class FilePart:
    """One file: mode bits, size, chunks in order. A link has `target` and no chunks."""

    path: str
    mode: int
    size: int
    chunks: tuple[ChunkRef, ...]
    target: str = ""


@attrs.frozen
class ProtectedPart:
    """A protected file, folder or database under its name."""

    kind: str
    source: str
    files: tuple[FilePart, ...]


@attrs.frozen
class Manifest:
    """A snapshot. `position` and `at` (Unix seconds) say which commit it shows; `root` is a hash over all content."""

    id: str
    store: str
    generation: int
    position: int
    at: float
    taken: float
    what: tuple[str, ...]
    schema: int
    chunk_size: int
    tables: dict[str, TablePart]
    files: dict[str, ProtectedPart]
    root: str
    key_id: str
    encrypted: bool
    format: int = 1

    @property
    def whole(self) -> bool:
        """Whether it holds all of the durable state, so that a state can be restored from it alone."""
        from deia_recovery.engine.schema import TABLES

        return all(table.name in self.tables for table in TABLES)

    def chunks(self) -> list[ChunkRef]:
        """Every chunk that it refers to."""
        found = [ref for part in self.tables.values() for ref in part.chunks]
        for protected in self.files.values():
            found.extend(ref for file in protected.files for ref in file.chunks)
        return found

    @property
    def rows(self) -> dict[str, int]:
        return {name: part.rows for name, part in self.tables.items()}


def root_hash(tables: dict[str, TablePart], files: dict[str, ProtectedPart]) -> str:
    """One hash over everything: the names of all chunks, in order, with where they belong."""
    total = hashlib.sha256()
    for name in sorted(tables):
        part = tables[name]
        total.update(msgspec.json.encode([name, part.columns, part.rows, [ref.name for ref in part.chunks]]))
    for name in sorted(files):
        for file in files[name].files:
            total.update(
                msgspec.json.encode([name, file.path, file.mode, file.size, file.target, [r.name for r in file.chunks]])
            )
    return total.hexdigest()


def manifest_name(snapshot: str) -> str:
    return f"snapshots/{snapshot}.json"


def write_manifest(manifest: Manifest, keys: KeyRing) -> bytes:
    body = msgspec.json.encode(manifest)
    return body + b"\n" + keys.mac(body).encode() + b"\n"


def read_manifest(data: bytes, keys: KeyRing, where: str) -> Manifest:
    """Check and decode. Raises WrongKey, BackupError (damaged or forged), StateError (written by a newer release)."""
    body, _, rest = data.partition(b"\n")
    try:
        shown = msgspec.json.decode(body, type=_Shown)
    except (msgspec.DecodeError, ValueError) as error:
        raise BackupError(f"{where} is not a manifest: {error}") from error
    if shown.key_id != keys.id:
        raise WrongKey(
            f"{where} was made with the key {shown.key_id!r}, the present one is {keys.id!r}: nothing was touched; "
            "put the right key into keys/recovery.key or recovery.encryption.key"
        )
    if not rest.endswith(b"\n") or not keys.verify(body, rest[:-1].decode("ascii", "replace")):
        raise BackupError(f"{where} was changed since it was written: its MAC does not fit")
    if shown.schema > FORMAT or shown.format > 1:
        raise StateError(
            f"{where} was written by a newer release (schema {shown.schema}, this one reads up to {FORMAT}); "
            "nothing was touched: run that release"
        )
    manifest = msgspec.json.decode(body, type=Manifest)
    if root_hash(manifest.tables, manifest.files) != manifest.root:
        raise BackupError(f"{where} contradicts itself: its root hash is not that of its chunks")
    return manifest


class _Shown(msgspec.Struct):
    key_id: str
    schema: int = 0
    format: int = 1
