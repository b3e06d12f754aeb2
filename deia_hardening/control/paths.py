"""Where the control socket of a home is. The path of an AF_UNIX socket ends at 107 bytes.

A home with a longer path keeps its socket in a 0700 folder under the system's temporary one, named by a hash of the
home, and says so in `run/control.path`, so that the command line finds it whatever its own TMPDIR is.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Final

LONGEST: Final = 103 if sys.platform == "darwin" else 107
NAME: Final = "control.sock"


class UnsafeFolderError(OSError):
    """A folder for the socket exists and somebody else could swap what is in it."""


def run_folder(home: Path) -> Path:
    return home / "run"


def socket_path(home: Path) -> Path:
    """Where to bind the socket. Pure but for the name of the temporary folder."""
    near = run_folder(home) / NAME
    if len(os.fsencode(near)) <= LONGEST:
        return near
    digest = sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"deia-{os.geteuid()}-{digest}" / NAME


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
