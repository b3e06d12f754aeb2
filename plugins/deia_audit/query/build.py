"""Builds one segment's index in a process of its own, at low priority: the service's threads are not held up.

`python -m deia_audit.query.build SEGMENT NUMBER FIRST FOLDER KEYS`
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from deia_audit.query.index import build
from deia_hardening.journal import Segment


def build_elsewhere(segment: Segment, folder: Path, keys: Path) -> bool:
    """Build an index in a child process; False when that failed. Blocking."""
    command = [sys.executable, "-m", "deia_audit.query.build", str(segment.path), str(segment.number)]
    command += [str(segment.first), str(folder), str(keys)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def main(arguments: list[str]) -> None:
    path, number, first, folder, keys = arguments
    with contextlib.suppress(OSError):
        os.nice(10)
    for source in (Path(path), Path(f"{path}.gz")):  # it may be compressed, or pruned, in between
        with contextlib.suppress(FileNotFoundError):
            compressed = source.suffix == ".gz"
            segment = Segment(int(number), int(first), source, source.stat().st_size, compressed, False, 0.0)
            build(segment, Path(folder), Path(keys))
            return


if __name__ == "__main__":
    main(sys.argv[1:])
