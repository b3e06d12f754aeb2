"""Where a home's sockets can be: the path of an AF_UNIX socket ends at 107 bytes (103 on macOS), and homes may be deep.

What does not fit goes to a folder under the system's temporary one, named by a hash of the home; where even that is
too deep (TMPDIR is anybody's to set), under `/tmp`. Whoever makes the folder makes it 0700 and checks whose it is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Final

LONGEST: Final = 103 if sys.platform == "darwin" else 107


def fitting(near: Path, home: Path, room: int = 0) -> Path:
    """`near`, or where a socket of its name goes instead; `room` more bytes must fit behind it. Touches no file."""
    if _fits(near, room):
        return near
    folder = f"deia-{os.geteuid()}-{sha256(os.fsencode(home)).hexdigest()[:16]}"
    path = Path(tempfile.gettempdir()) / folder / near.name
    return path if _fits(path, room) else Path("/tmp") / folder / near.name  # noqa: S108


def _fits(path: Path, room: int) -> bool:
    return len(os.fsencode(path)) + room <= LONGEST
