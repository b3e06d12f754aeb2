"""What tells of changed files: Linux's inotify(7), and watchfiles on other systems.

On Linux a thread waits in the kernel until something happens. watchfiles, which does the same for every system, looks a
hundred times a second and holds the interpreter's lock then: on a busy process that was 3 µs of CPU for each request.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

_CHANGED: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF: no reading."""
_AT_ONCE: Final = 65536
"""Bytes of events that are read at once."""


class Notifier(Protocol):
    """Waits for changes of some files, and of what lies in some folders (not below)."""

    def wait(self) -> bool:
        """Return True when something has changed, a step after it began to; False after `stop`. Blocking."""

    def stop(self) -> None:
        """End the wait. Any thread, at any time."""

    def close(self) -> None:
        """Give everything back. On the thread that waits."""


def notifier(paths: Sequence[str], step: float) -> Notifier:
    """What tells of changes at `paths`, gathered over `step` seconds. Raises OSError, or watchfiles' own error."""
    return Inotify(paths, step) if sys.platform == "linux" else Watchfiles(paths, step)


class Inotify:
    """Linux's own, by the C library."""

    def __init__(self, paths: Sequence[str], step: float) -> None:
        self._step = step
        self._lock = threading.Lock()
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = _done(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")
        self._bell = -1
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            for path in paths:
                try:
                    _done(libc.inotify_add_watch(self._events, os.fsencode(path), ctypes.c_uint32(_CHANGED)), path)
                except PermissionError:
                    pass  # its contents can't be read either: who reads them says so
        except BaseException:
            self.close()
            raise

    def wait(self) -> bool:
        bell = select.poll()
        bell.register(self._bell, select.POLLIN)
        both = select.poll()
        both.register(self._bell, select.POLLIN)
        both.register(self._events, select.POLLIN)
        both.poll()
        if bell.poll(self._step * 1000):
            return False
        try:
            while len(os.read(self._events, _AT_ONCE)) > _AT_ONCE // 2:
                pass
        except BlockingIOError:
            pass
        return True

    def stop(self) -> None:
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        with self._lock:
            for descriptor in (self._events, self._bell):
                if descriptor >= 0:
                    os.close(descriptor)
            self._events = self._bell = -1


def _done(found: int, what: str) -> int:
    """The C library's result, or its error."""
    if found < 0:
        number = ctypes.get_errno()
        if what == "inotify" or number == errno.ENOSPC:
            raise OSError(number, f"{os.strerror(number)}: see fs.inotify in sysctl(8)", what)
        raise OSError(number, os.strerror(number), what)
    return found


class Watchfiles:
    """Other systems'."""

    def __init__(self, paths: Sequence[str], step: float) -> None:
        from watchfiles._rust_notify import RustNotify  # 3 MB that only a watching process loads

        self._step = max(1, int(step * 1000))
        self._stop = threading.Event()
        self._notify: Any = RustNotify(list(paths), False, False, 0, False, True)

    def wait(self) -> bool:
        return self._notify.watch(self._step, self._step, 0, self._stop) not in ("stop", "signal")

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._notify.close()
