"""Forks and the interpreter's exit, for all journals of the process.

A fork's child has the journals as never opened: what the parent had queued is the parent's to write. At exit what
is queued is written on the exiting thread; no thread is started then. A child that `multiprocessing` forked ends
without `atexit`; it has a list of its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import weakref
from typing import Protocol


class _Follows(Protocol):
    def after_fork(self) -> None: ...

    def at_exit(self) -> None: ...


_journals: weakref.WeakSet[_Follows] = weakref.WeakSet()
_registered_in = 0


def follow(journal: _Follows) -> None:
    """Tell `journal` about forks and the exit, for as long as somebody else refers to it."""
    _journals.add(journal)


def at_the_end_of_a_child() -> None:
    """Where this process is a child of `multiprocessing`, have it write what is queued when its work is done."""
    global _registered_in
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            from multiprocessing.util import Finalize

            Finalize(None, _at_exit, exitpriority=0)


def _after_fork() -> None:
    for journal in list(_journals):
        journal.after_fork()


def _at_exit() -> None:
    for journal in list(_journals):
        try:
            journal.at_exit()
        except Exception:  # the other logs are to be written all the same
            traceback.print_exc()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
