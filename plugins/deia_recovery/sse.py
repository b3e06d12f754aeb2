"""A task's numbered log as server-sent events (WHATWG HTML, section 9.2), resumed by `Last-Event-ID`.

The log is durable, so a client that reconnects, to whichever worker or version, misses nothing and sees nothing twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from deia_hardening.plugin import Receive, Scope, Send
    from deia_recovery.stores.tasks import TaskQueue

_MOST = 1 << 62


def last_event_id(scope: Scope) -> int:
    """The number of the last event that the client has seen; 0 when it names none, or nonsense."""
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value.isdigit() and len(value) < 19:
            return min(int(value), _MOST)
    return 0


async def event_bytes(queue: TaskQueue[Any], task: str, after: int = 0) -> AsyncIterator[bytes]:
    """A task's events behind number `after` as bytes of an event stream, until the task is over.

    The last one is `event: end` with the task's state. Raises UnknownTask.
    """
    async for event in queue.follow(task, after=after):
        yield b"id: %d\ndata: %s\n\n" % (event.number, msgspec.json.encode(event.value))
    state = (await queue.get(task)).state
    yield b"event: end\ndata: %s\n\n" % msgspec.json.encode({"state": state})


async def stream(queue: TaskQueue[Any], task: str, after: int, send: Send) -> None:
    """Answer a request with a task's events."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for data in event_bytes(queue, task, after):
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class TaskEvents:
    """An ASGI response: `return TaskEvents(jobs, task_id)` from a Starlette endpoint, or call it with a scope."""

    def __init__(self, queue: TaskQueue[Any], task: str) -> None:
        self._queue = queue
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await stream(self._queue, self._task, last_event_id(scope), send)
