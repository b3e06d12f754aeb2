"""Where the control socket of a home is.

A home whose path is too long for a socket keeps it elsewhere (`socketpath`), in a folder of mode 0700, and says so in
`run/control.path`, so that the command line finds it whatever its own TMPDIR is.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from deia_hardening.locks import lock, unlock
from deia_hardening.socketpath import fitting

NAME: Final = "control.sock"


class UnsafeFolderError(OSError):
    """A folder for the socket exists and somebody else could swap what is in it."""


def run_folder(home: Path) -> Path:
    return home / "run"


def socket_path(home: Path) -> Path:
    """Where to bind the socket. Pure but for the name of the temporary folder."""
    return fitting(run_folder(home) / NAME, home)


def presence(home: Path) -> Path:
    """The file that every worker with an open lifespan holds a shared lock on."""
    return run_folder(home) / "control.here"


def somebody_is_here(home: Path) -> bool:
    """Whether a service runs on the home, even if nobody answers at the moment. Blocking."""
    try:
        descriptor = os.open(presence(home), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        unlock(descriptor)
    return False


def make_folder(path: Path, home: Path) -> None:
    """Make the socket's folder, 0700, and point to it when it is far. Blocking. Raises OSError (UnsafeFolderError)."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=folder == run_folder(home), exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UnsafeFolderError(f"{folder} belongs to somebody else: remove it, or set a shorter home")
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)
    pointer = run_folder(home) / "control.path"
    if folder == run_folder(home):
        pointer.unlink(missing_ok=True)
    else:
        pointer.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = pointer.with_suffix(f".{os.getpid()}")
        beside.write_bytes(os.fsencode(path))
        beside.rename(pointer)


def find_socket(home: Path) -> Path:
    """Where the socket of a home is, for a client. Blocking."""
    try:
        return Path(os.fsdecode((run_folder(home) / "control.path").read_bytes()[:4096]))
    except OSError:
        return socket_path(home)
