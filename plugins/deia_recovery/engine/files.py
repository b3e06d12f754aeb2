"""Small durable file operations: replace a file whole, sync a folder, lock across processes.

A file is replaced by: write beside, fsync, rename, fsync the folder. Locks are `flock`: free at death, never
inherited by a forked child that outlives its parent (children close them).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(fd: int) -> None:
    """Make a file's bytes durable (F_FULLFSYNC where that is what it takes)."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, durably: after a crash it holds the old or the new bytes, never a mixture."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        sync_file(fd)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    os.close(fd)
    beside.replace(path)
    sync_folder(path.parent)


_NEAR = 65536
_AT_ONCE = 1 << 20


def read_pieces(fd: int, offsets: Iterable[int], size: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, `size` bytes) for each offset, in order of place; what lies near together is read by one call.

    A call for each would give the interpreter's lock away each time. At the file's end a piece is shorter.
    """
    run: list[int] = []
    for offset in sorted(offsets):
        if run and (offset - run[-1] > _NEAR or offset + size - run[0] > _AT_ONCE):
            yield from _read_run(fd, run, size)
            run = []
        run.append(offset)
    if run:
        yield from _read_run(fd, run, size)


def _read_run(fd: int, run: list[int], size: int) -> Iterator[tuple[int, memoryview]]:
    first = run[0]
    block = memoryview(os.pread(fd, run[-1] + size - first, first))
    for offset in run:
        yield offset, block[offset - first : offset - first + size]


def make_folder(folder: Path) -> None:
    """Create `folder` (0700) and its missing parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A `flock` on a file of its own. Not shared between threads without a lock of the caller's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        _open_locks.add(self)

    def open(self) -> int:
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self.fd

    def acquire(self, *, shared: bool = False) -> None:
        """Wait for the lock."""
        fcntl.flock(self.open(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self.open(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give it back, whatever happens: a descriptor that can't be unlocked is closed, which does the same."""
        if self.fd >= 0:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            except OSError:
                self.close()

    def close(self) -> None:
        """Release and close."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _close_in_child() -> None:
    for lock in list(_open_locks):
        if lock.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(lock.fd)
            lock.fd = -1


os.register_at_fork(after_in_child=_close_in_child)
