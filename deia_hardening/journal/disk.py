"""The few file operations a journal needs, each with the durability it promises.

Durable means that fdatasync returned (F_FULLFSYNC on macOS, whose fsync leaves data in the drive's cache).
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH108
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from deia_hardening.locks import lock, unlock

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
FILE_MODE = 0o600
FOLDER_MODE = 0o700
_FULLFSYNC = getattr(fcntl, "F_FULLFSYNC", 51)


def sync_file(descriptor: int) -> None:
    """Return when the file's data is on disk."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return when the folder's names are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LEVELS = 3


def sync_above(folder: Path) -> None:
    """Return when the names of `folder` and of the two folders above it are on disk.

    Another process may have made them a moment ago, and not have come to syncing them.
    """
    for above in [*folder.parents][:_LEVELS]:
        with contextlib.suppress(PermissionError):  # somebody else's folder was there before
            sync_folder(above)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, private, with their names on disk."""
    missing: list[Path] = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(FOLDER_MODE, exist_ok=True)
        sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, in as few calls as the system takes; short writes are continued."""
    written = os.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            count = os.write(descriptor, view[written:])
            if count <= 0:
                raise OSError(errno.EIO, "the file takes no more bytes")
            written += count


def read_range(descriptor: int, start: int, end: int) -> bytes:
    """The bytes from `start` to `end`, fewer where the file is shorter."""
    parts: list[bytes] = []
    while start < end:
        part = os.pread(descriptor, min(end - start, 1 << 24), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_new(path: Path, data: bytes) -> None:
    """Create (or overwrite a leftover) `path` with `data`, synced. The folder is not."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, FILE_MODE)
    try:
        write_all(descriptor, data)
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def save_aside(path: Path, kind: str, stamp: str, data: bytes) -> Path:
    """Keep `data` in a new file beside `path`, synced with its name. Returns where."""
    for number in range(10_000):
        target = path.with_name(f"{path.name}.{kind}-{stamp}-{number}")
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        except FileExistsError:
            continue
        try:
            write_all(descriptor, data)
            sync_file(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise
        finally:
            os.close(descriptor)
        sync_folder(path.parent)
        return target
    raise FileExistsError(errno.EEXIST, f"too many files set aside beside {path}")


class FolderLock:
    """The lock of a folder, for changes of which files there are. Re-entrant within its owner's one thread.

    Taken before a live file's lock, never after it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self._depth = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        if self._depth == 0:
            make_folder(self._folder)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock(descriptor)
            except BaseException:
                unlock(descriptor)
                raise
            self._descriptor = descriptor
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                unlock(self._descriptor)
                self._descriptor = -1

    def forget(self) -> None:
        """In a fork's child: as never held. Its copy of the descriptor is closed."""
        self._descriptor, self._depth = -1, 0
