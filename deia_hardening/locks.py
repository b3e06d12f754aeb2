"""Locks of files (`flock`) in a process that may fork at any moment, from any of its threads.

Such a lock lives for as long as any copy of its descriptor is open: a child that inherits one would hold it, for as
long as the child runs, though its parent closed it long ago. So it is given back by a call of its own, which counts
for every copy, and a child closes what it inherited.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

_locked: set[int] = set()


def lock(descriptor: int, how: int = fcntl.LOCK_EX) -> None:
    """Lock the file behind `descriptor`, and have a child that is forked meanwhile close it. Raises OSError.

    May block, unless `how` says LOCK_NB. Then, also after an error, `unlock` takes the descriptor.
    """
    _locked.add(descriptor)
    fcntl.flock(descriptor, how)


def unlock(descriptor: int) -> None:
    """Give back the lock, if it is held, and close `descriptor`; in a child that inherited it, do nothing."""
    if descriptor not in _locked:  # closed at the fork, and by now perhaps another file's number
        return
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    _locked.discard(descriptor)
    os.close(descriptor)


def _after_fork() -> None:
    while _locked:
        with contextlib.suppress(OSError):
            os.close(_locked.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
