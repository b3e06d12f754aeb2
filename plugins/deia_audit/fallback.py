"""Where the control plane's actions go when the trail can't take them: standard error and syslog, and the trail later.

An operator must be able to act while the disk is gone; what was done then is told at once where it can be, and
recorded once the trail can be written again. Bounded: the newest actions are kept.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from deia_hardening.journal import JournalError

MOST = 256
"""Actions that wait for the trail at most."""


class Fate(Protocol):
    """What is known of a record that was handed to the journal."""

    def done(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


def tell(line: str) -> None:
    """Write a line to standard error and to syslog; blocking."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    with contextlib.suppress(OSError, ImportError):
        import syslog

        syslog.syslog(syslog.LOG_AUTHPRIV | syslog.LOG_WARNING, line)


def line_of(members: Mapping[str, Any]) -> str:
    """Return an action as one line of text that steers no terminal."""
    return "audit (not in the trail yet): " + msgspec.json.encode(members, enc_hook=str).decode("ascii", "replace")


class Waiting:
    """Actions whose record is not known to be in the trail. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: deque[tuple[Callable[[], Fate], Fate]] = deque(maxlen=MOST)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, again: Callable[[], Fate], fate: Fate) -> None:
        """Keep an action until its record is known to be durable; `again` records it anew."""
        with self._lock:
            self._open.append((again, fate))

    def retry(self) -> int:
        """Record again what was lost; how many actions still wait. Call it when the trail can be written."""
        with self._lock:
            waiting = list(self._open)
            self._open.clear()
            for again, fate in waiting:
                if not fate.done():
                    self._open.append((again, fate))
                elif _lost(fate):
                    self._open.append((again, again()))
            return len(self._open)


def _lost(fate: Fate) -> bool:
    try:
        return not fate.wait(0)
    except JournalError:
        return True
