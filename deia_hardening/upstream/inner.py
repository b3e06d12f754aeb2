"""The inner role: what a version of a service is when it runs under another that hardens it.

A module that calls `harden()` itself may be started as a child process (`process:`) or imported beside
(`inproc:`). There it is no second front: the role stands in its environment, the parent's word about each
request comes on the scope, and revision, mode and flags come down a pipe whose end is also the child's
order to end. The pipe carries lines of JSON, each an object with its kind in `t`:

down  `{"t": "state", "revision": 7, "mode": "FULL", "flags": {…}}`, `{"t": "stop"}`
up    `{"t": "ready", "pid": 42}`, `{"t": "record", "event": {…}}`, `{"t": "failed", "why": "…"}`
"""

from __future__ import annotations

import os
import sys
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


class Link:
    """The child's end of the pipe to its parent. Made by `link()`; any thread."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def state(self) -> ChildState:
        """The latest word on revision, mode and flags."""
        raw = self._module.state()
        return ChildState(
            revision=int(raw.get("revision", 0)), mode=str(raw.get("mode", "FULL")), flags=dict(raw.get("flags") or {})
        )

    def on_state(self, callback: Callable[[ChildState], None]) -> None:
        """Call `callback(state)` from the pipe's thread whenever it changes, and once now. It must not
        block."""
        self._module.subscribe(lambda: callback(self.state))
        callback(self.state)

    def record(self, event: dict[str, Any]) -> bool:
        """Hand a record up to the parent, which journals it. Never blocks; False when it was dropped (pipe
        full)."""
        return bool(self._module.send_up({"t": "record", "event": event}))


def link() -> Link | None:
    """The pipe to the parent when this process is a child, else None."""
    module = sys.modules.get(CHILD_MODULE)
    return Link(module) if module is not None else None
