"""The streams and WebSockets of the process: who must be told when it goes down.

A request is registered here only while it is one: it waits for its client to leave after its whole body was read
(as server-sent events do), or it is an open WebSocket. `end_all` makes each see its client leave, `end` one of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from deia_hardening.types import Message, Receive

_lock = threading.Lock()
_open: dict[int, tuple[Callable[..., Any], anyio.CancelScope, Any]] = {}
_armed_by: set[object] = set()
armed = False
"""Whether anybody may tell streams to end: a signal handler is installed, or a plugin ends streams."""

ended = False
"""Whether streams were told to end: the process is going down."""


def count() -> int:
    """Streams that are open and can be told."""
    return len(_open)


def end_all() -> None:
    """Tell every stream, now and for the rest of this process's life, that its client has left. Any thread."""
    global ended
    ended = True
    with _lock:
        waiting = list(_open.values())
    for schedule, scope, _ in waiting:
        try:
            schedule(scope.cancel)
        except RuntimeError:
            pass  # its loop is gone


def end(owner: Any) -> None:
    """Have `owner` see its client leave where it waits for it now. On its loop."""
    with _lock:
        scopes = [scope for _, scope, one in _open.values() if one is owner]
    for scope in scopes:
        scope.cancel()


def arm(who: object) -> None:
    """From now on `who` may tell streams to end, until `disarm(who)`."""
    global armed
    with _lock:
        _armed_by.add(who)
        armed = True


def disarm(who: object) -> None:
    """`who` tells nobody any more."""
    global armed
    with _lock:
        _armed_by.discard(who)
        armed = bool(_armed_by)


def reset() -> None:
    """As never ended: for a service that starts again in the same process, and for tests."""
    global ended
    ended = False


async def receive_or_end(receive: Receive, leave: Callable[[], Awaitable[Message]], owner: Any = None) -> Message:
    """`await receive()`, or `await leave()` when streams, or `owner`, are told to end first.

    `receive` is cancelled then, which servers allow. About 3 µs.
    """
    if ended or (owner is not None and owner.dismissed):
        return await leave()
    scope = anyio.CancelScope()
    key = id(scope)
    with scope:
        with _lock:
            _open[key] = (_scheduler(), scope, owner)
        try:
            return await receive()
        finally:
            with _lock:
                _open.pop(key, None)
    return await leave()


async def until_left(receive: Receive) -> bool:
    """Wait until the client leaves: True; False when this `receive` goes on giving bodies that have ended.

    A test's `receive` may answer at once for ever; waiting on it would keep its loop busy and everybody else out.
    """
    ended = False
    while (message := await receive())["type"] != "http.disconnect":
        if not message.get("more_body", False):
            if ended:
                return False
            ended = True
    return True


def _scheduler() -> Callable[..., Any]:
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
