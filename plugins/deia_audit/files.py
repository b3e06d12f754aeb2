"""Durable small files: written beside, synced, renamed, their folder synced.

Blocking; for core-owned threads. A reader sees the old file or the new one, also after a power cut.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deia_hardening.turns import turns

_PART = 8
"""Files that are written in one part of the work, while a busy loop stands aside."""


def sync_file(descriptor: int) -> None:
    """Make a descriptor's data durable (F_FULLFSYNC on macOS)."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path | str) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`, durably. The folder must exist."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            write_all(descriptor, data)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def leftover(path: str) -> str:
    """Return where `write_beside` keeps what is to become `path`; a crash may leave it behind."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.new"


def write_beside(files: Sequence[tuple[str, bytes]], mode: int = 0o644) -> None:
    """Write files beside their places, durably; `put_in_place` renames them. One writer at a time.

    All are written, and on their way to the disk, before the first is synced: the file system then commits them
    together, and each further sync costs a fifth of the first.
    """
    opened: list[int] = []
    try:
        for path, data in files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(leftover(path), flags, mode)
            opened.append(descriptor)
            write_all(descriptor, data)
            _start_writing(descriptor)
            if len(opened) % _PART == 0:
                turns.part()
        turns.waits()
        for descriptor in opened:
            sync_file(descriptor)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _start_writing(descriptor: int) -> None:
    """Have the system begin to write a file out, without waiting for it; only a hint."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not every file system knows it
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def put_in_place(paths: Iterable[str]) -> None:
    """Rename what `write_beside` wrote; the caller syncs the folders."""
    for path in paths:
        os.rename(leftover(path), path)  # noqa: PTH104


def make_folders(folder: Path, mode: int = 0o755) -> None:
    """Make `folder` and its parents, durably."""
    missing = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for one in reversed(missing):
        one.mkdir(mode=mode, exist_ok=True)
        sync_folder(one.parent)


def no_files(folder: Path, prefix: str = "", deep: int = 8) -> Iterator[Path]:
    """Yield what stands below a folder, under names with `prefix`, and is neither file nor folder.

    Reading a pipe waits for ever, and some devices never end.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(prefix)]
    except OSError:
        return  # who reads it will say so
    for entry in entries:
        if entry.is_file(follow_symlinks=False):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            yield from no_files(Path(entry.path), deep=deep - 1) if deep else ()
        elif not stat.S_ISREG(mode):
            yield Path(entry.path)
