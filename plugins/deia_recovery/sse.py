"""A task's numbered log as server-sent events (WHATWG HTML, section 9.2), resumed by `Last-Event-ID`.

The log is durable, so a client that reconnects, to whichever worker or version, misses nothing and sees nothing twice.
One that has seen the end is answered 204, which is what ends a browser's reconnecting.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from deia_hardening.problem import Problem
from deia_recovery.errors import Undecodable, UnknownTask

if TYPE_CHECKING:
    from deia_hardening.plugin import Receive, Scope, Send
    from deia_recovery.stores.tasks import TaskQueue

_MOST = 1 << 62
_END = b".end"
"""What the id of the last event ends with."""
_QUIET = 15.0
"""Seconds after which a comment is sent, so that nobody between takes a waiting stream for a dead one."""


def _seen(scope: Scope) -> tuple[int, bool]:
    """The number of the last event that the client has seen (0 for none, or nonsense), and whether it saw the end."""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            number = value.removesuffix(_END)
            if number.isdigit() and len(number) < 19:
                return min(int(number), _MOST), value.endswith(_END)
    return 0, False


async def event_bytes(queue: TaskQueue[Any], task: str, after: int = 0) -> AsyncIterator[bytes]:
    """A task's events behind number `after` as bytes of an event stream, until the task is over.

    The last one is `event: end` with the task's state. Raises UnknownTask.
    """
    async for event in queue.follow(task, after=after):
        after = event.number
        yield b"id: %d\ndata: %s\n\n" % (after, msgspec.json.encode(event.value))
    state = (await queue.get(task)).state
    yield b"id: %d%s\nevent: end\ndata: %s\n\n" % (after, _END, msgspec.json.encode({"state": state}))


async def stream(queue: TaskQueue[Any], task: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a task's events; ends when the client goes. 404 for a task that is not there."""
    after, ended = _seen(scope)
    try:
        found = await queue.get(task)
    except (UnknownTask, Undecodable):
        await Problem(404, "There is no such task.").send(send)
        return
    if ended and found.finished is not None and found.events <= after:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    turn = anyio.Lock()

    async def say(data: bytes) -> None:
        async with turn:
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def until_gone(over: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        over.cancel()

    async def stay_awake() -> None:
        with contextlib.suppress(OSError):  # the client is gone: `receive` says so
            while True:
                await anyio.sleep(_QUIET)
                await say(b":\n\n")

    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(until_gone, group.cancel_scope)
        group.start_soon(stay_awake)
        try:
            async for data in event_bytes(queue, task, after):
                await say(data)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as error:  # as itself, not as the group's
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


class TaskEvents:
    """An ASGI response: `return TaskEvents(jobs, task_id)` from a Starlette endpoint, or call it with a scope."""

    def __init__(self, queue: TaskQueue[Any], task: str) -> None:
        self._queue = queue
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await stream(self._queue, self._task, scope, receive, send)
