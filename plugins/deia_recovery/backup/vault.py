"""Where backups are kept: a few operations on named objects, over a folder or (in `remote.py`) an object store.

Names are relative paths of our own making. An object appears whole or not at all; nothing is ever written over,
so no right to delete or change is needed, except for pruning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from deia_recovery.engine.files import make_folder, sync_file, sync_folder


class Vault(Protocol):
    """Blocking operations; OSError for what fails, FileNotFoundError for what is not there."""

    where: str

    def put(self, name: str, data: bytes) -> bool:
        """Store an object durably unless it exists. Returns whether it is new."""

    def replace(self, name: str, data: bytes) -> None:
        """Store an object durably, whatever was there."""

    def get(self, name: str) -> bytes: ...

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""

    def list(self, prefix: str) -> Iterator[str]:
        """Names below a prefix that ends in `/`."""

    def delete(self, name: str) -> None: ...

    def age(self, name: str, now: float) -> float:
        """Seconds since it was stored, by the store's own clock."""


class FolderVault:
    """A folder. Files are written beside, synced, renamed; a reader never sees half of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def put(self, name: str, data: bytes) -> bool:
        if self._path(name).exists():
            return False
        self.replace(name, data)
        return True

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        make_folder(path.parent)
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            sync_file(fd)
            if hasattr(os, "posix_fadvise"):  # so that reading it again asks the disk, not the cache
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        os.close(fd)
        beside.replace(path)
        sync_folder(path.parent)

    def confirm(self, names: Iterable[str]) -> None:
        """Make the names of what is there already durable: who stored it may have died, or failed, just before that."""
        for folder in {self._path(name).parent for name in names}:
            sync_folder(folder)

    def get(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        base = self.folder / prefix
        for folder, names, files in os.walk(base):
            names.sort()
            for file in sorted(files):
                if not file.startswith("."):
                    yield (Path(folder) / file).relative_to(self.folder).as_posix()

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def age(self, name: str, now: float) -> float:
        return now - self._path(name).stat().st_mtime


def chunk_name(name: str) -> str:
    """The object that holds a chunk."""
    return f"chunks/{name[:2]}/{name}"
