"""A disk that is full, and has room again: a small tmpfs of its own (root)."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deia_hardening.testing.faults.basics import Unavailable, available

_FILLER = ".filler"


@contextlib.contextmanager
def small_disk(*, mib: int = 4) -> Iterator[Path]:
    """A file system of `mib` MiB, unmounted at the end. Raises Unavailable without root."""
    reason = available("tmpfs")
    if reason is not None:
        raise Unavailable(reason)
    folder = Path(tempfile.mkdtemp(prefix="deia-small-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, *, leave: int = 0) -> None:
    """Take all free room but `leave` bytes (rounded to pages)."""
    with contextlib.suppress(OSError), open(folder / _FILLER, "ab", buffering=0) as file:
        while True:
            status = os.statvfs(folder)
            room = status.f_bavail * status.f_frsize - leave
            if room <= 0:
                return
            if file.write(bytes(min(room, 1 << 20))) == 0:
                raise OSError(errno.ENOSPC, "full")


def release(folder: Path) -> None:
    """Give the room back."""
    (folder / _FILLER).unlink(missing_ok=True)
