"""The inner role: what a version of a service is when it runs under another that hardens it.

A module that calls `harden()` itself may be started as a child process (`process:`) or imported beside
(`inproc:`). There it is no second front: the role stands in its environment, the parent's word about each
request comes on the scope, and revision, mode and flags come down a pipe whose end is also the child's
order to end. The pipe carries lines of JSON, each an object with its kind in `t`:

down  `{"t": "state", "revision": 7, "mode": "FULL", "flags": {…}}`, `{"t": "kept", "n": [17], "why": ""}`,
      `{"t": "parent"}` (another worker of the front has taken over), `{"t": "stop"}`
up    `{"t": "ready", "pid": 42}`, `{"t": "record", "n": 17, "event": {…}}`, `{"t": "lost", "count": 3}`,
      `{"t": "failed", "why": "…"}`
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from deia_hardening.types import Scope
from deia_hardening.upstream.child_context import ChildState

ROLE_VARIABLE = "DEIA_ROLE"
ROLE_INNER = "inner"
CONTROL_VARIABLE = "DEIA_CONTROL_FD"
CHILD_MODULE = "_deia_child"
"""The name under which `child_main.py` registers itself in a child, so that this module finds its pipe."""

SCOPE_KEY = "deia_hardening.child"
"""Where a child's scope carries the parent's word: id, actor, revision, mode, version, remaining, flags."""


def is_inner() -> bool:
    """Whether `harden()` is called in the inner role."""
    return os.environ.get(ROLE_VARIABLE) == ROLE_INNER


def request_context(scope: Scope) -> dict[str, Any] | None:
    """What the parent said of this request (verified), or None: not a child, or nothing was said."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, dict) else None


Kept = Callable[[str], None]
"""Called once with why a record was not kept, "" when the parent's journal has it."""


class Link:
    """The child's end of the pipe to its parent: one per process, from `link()`; any thread."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._numbers = itertools.count(1).__next__
        self._lock = threading.Lock()
        self._waiting: dict[int, Kept] = {}
        module.subscribe("kept", self._were_kept)
        with contextlib.suppress(KeyError):  # the program of an older front, which takes no other kinds
            module.subscribe("parent", self._parent_changed)

    @property
    def state(self) -> ChildState:
        """The latest word on revision, mode and flags."""
        raw = self._module.state()
        return ChildState(
            revision=int(raw.get("revision", 0)), mode=str(raw.get("mode", "FULL")), flags=dict(raw.get("flags") or {})
        )

    def on_state(self, callback: Callable[[ChildState], None]) -> None:
        """Call `callback(state)` from the pipe's thread at each word of the parent, and once now. It must not
        block."""
        self._module.subscribe("state", lambda message: callback(self.state))
        callback(self.state)

    def record(self, event: dict[str, Any], kept: Kept | None = None) -> bool:
        """Hand a record up to the parent, which journals it. Never blocks; False when it was dropped (the parent
        has not read the last 4 MiB; the count of those is told to it later).

        `kept` is called on the pipe's thread when the record's fate is known; not at all when False came back.
        """
        if kept is None:
            return bool(self._module.send_up({"t": "record", "event": event}))
        number = self._numbers()
        with self._lock:
            self._waiting[number] = kept
        if self._module.send_up({"t": "record", "n": number, "event": event}):
            return True
        with self._lock:
            self._waiting.pop(number, None)
        return False

    def _were_kept(self, message: dict[str, Any]) -> None:
        why = str(message.get("why", ""))
        with self._lock:
            callbacks = [self._waiting.pop(number, None) for number in message.get("n", ())]
        for callback in callbacks:
            if callback is not None:
                callback(why)

    def _parent_changed(self, message: dict[str, Any]) -> None:
        """Nobody will say any more what became of the records that the front before had taken."""
        with self._lock:
            callbacks = [*self._waiting.values()]
            self._waiting.clear()
        for callback in callbacks:
            callback("the worker of the front that took it has gone; it is not known whether it was kept")


_link: Link | None = None
_link_lock = threading.Lock()


def link() -> Link | None:
    """The pipe to the parent when this process is a child, else None."""
    global _link
    module = sys.modules.get(CHILD_MODULE)
    if module is None:
        return None
    with _link_lock:
        if _link is None or _link._module is not module:
            _link = Link(module)
        return _link
