"""Which workers of one home are alive: a locked file each, so the kernel itself tells of a death.

The files stand in `.deia/run/config/`. A worker that dies lets go of its lock at once, however it dies; nobody waits
for a heartbeat. Every method blocks for a moment: call them off the loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from pathlib import Path

from deia_hardening.locks import lock, unlock

_ENDING = ".worker"
_NUDGE = "nudge"


class Members:
    """This worker among the workers of its home."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "run" / "config"
        self.me = ""
        self._descriptor = -1
        self._left = False
        self._lock = threading.Lock()  # a join may still be on its way when the leave comes

    def join(self) -> None:
        """Be one of them, until `leave`. Raises OSError where the home can't be written to."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock:
            while not self.me and not self._left:
                name = f"{os.getpid()}-{secrets.token_hex(4)}"
                path = self.folder / f"{name}{_ENDING}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                lock(descriptor)
                if os.fstat(descriptor).st_nlink:
                    self.me, self._descriptor = name, descriptor
                else:  # somebody took it for a dead one's before it was locked
                    unlock(descriptor)

    def leave(self) -> None:
        """Be none of them any more."""
        with self._lock:
            self._left = True
            if self._descriptor >= 0:
                with contextlib.suppress(OSError):
                    (self.folder / f"{self.me}{_ENDING}").unlink()
                unlock(self._descriptor)
                self.me, self._descriptor = "", -1

    def others(self) -> tuple[str, ...]:
        """The living others. Removes what dead ones left."""
        try:
            names = [path.name.removesuffix(_ENDING) for path in self.folder.glob(f"*{_ENDING}")]
        except OSError:
            return ()
        return tuple(sorted(name for name in names if name != self.me and self.alive(name)))

    def alive(self, name: str) -> bool:
        """Whether this worker lives."""
        path = self.folder / f"{name}{_ENDING}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        finally:
            unlock(descriptor)

    def nudge(self) -> None:
        """Have everybody who watches the folder look."""
        with contextlib.suppress(OSError):
            (self.folder / _NUDGE).write_text(secrets.token_hex(4))
