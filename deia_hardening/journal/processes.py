"""Forks and the interpreter's exit, for all journals of the process.

A fork's child has the journals as never opened: what the parent had queued is the parent's to write. At exit what
is queued is written on the exiting thread; no thread is started then.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class _Follows(Protocol):
    def after_fork(self) -> None: ...

    def at_exit(self) -> None: ...


_journals: weakref.WeakSet[_Follows] = weakref.WeakSet()


def follow(journal: _Follows) -> None:
    """Tell `journal` about forks and the exit, for as long as somebody else refers to it."""
    _journals.add(journal)


def _after_fork() -> None:
    for journal in list(_journals):
        journal.after_fork()


def _at_exit() -> None:
    for journal in list(_journals):
        journal.at_exit()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
