"""Waiting for one's turn while watching whether the client is still there.

A client that leaves, leaves the queue. What was read of its request meanwhile is given to the app afterwards, in
the same order, so the app can't tell. Only requests that do wait pay for this.
"""

from __future__ import annotations

import anyio

from deia_hardening.plugin import Latch, Message, Receive

_MOST = 65536
"""Bytes of a body that are read ahead, so that a client is seen to leave; then it has to wait as well."""


async def wait_for(latch: Latch, receive: Receive) -> Receive:
    """Return once `latch` is set or the client left; the result is what to receive from afterwards.

    Works on asyncio and trio. Cancellation passes through.
    """
    held: list[Message] = []
    failure: list[Exception] = []

    async def watch() -> None:
        size = 0
        try:
            while True:
                message = await receive()
                held.append(message)
                kind = message["type"]
                if kind in ("http.disconnect", "websocket.disconnect"):
                    group.cancel_scope.cancel()
                    return
                if kind == "http.request":
                    size += len(message.get("body") or b"")
                    if size >= _MOST and message.get("more_body"):
                        return  # the rest of the body stays with the server, which stops reading from the client
        except Exception as error:
            failure.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await latch.wait()
        group.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if not held:
        return receive

    async def replay() -> Message:
        return held.pop(0) if held else await receive()

    return replay
