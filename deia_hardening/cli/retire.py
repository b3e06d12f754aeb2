"""How a worker under uvicorn leaves without losing a request, while its successor serves the same socket.

It stops accepting; whoever is connected is answered, and each last answer says `connection: close`, so that no client
sends another request into a connection that is about to go. An idle connection is left to the server's own keep-alive
time-out: closing it earlier is what loses requests that are on their way. Streams and WebSockets have until a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deia_hardening import streams
from deia_hardening.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    import uvicorn

_LOOK = 0.02
_CLOSE = (b"connection", b"close")


class LastAnswer:
    """Adds `connection: close` to each answer of `app`; the server then closes after it."""

    __slots__ = ("_app",)

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [field for field in message.get("headers", ()) if field[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, _CLOSE]}
            await send(message)

        await self._app(scope, receive, closing)


async def retire(server: uvicorn.Server, listening: Iterable[socket.socket], drain: float) -> None:
    """Stop accepting, answer what is there, end streams after `drain` seconds, then let the server come to its end.

    On the serving loop, once. A server whose insides are not as known here is ended its own way.
    """
    began = time.monotonic()
    await _stop_accepting(server, listening)
    idle_limit = began + float(server.config.timeout_keep_alive) + 1.0
    with contextlib.suppress(AttributeError):
        for connection in list(server.server_state.connections):
            _last(connection)
    while server.server_state.connections and time.monotonic() < began + drain:
        await asyncio.sleep(_LOOK)
    for connection in list(server.server_state.connections):
        if not hasattr(connection, "cycle"):  # a WebSocket: told by the server itself, also while its app is sending
            connection.shutdown()
    streams.end_all()
    # Connections that are still idle close by themselves, those that were never used by us.
    while server.server_state.connections and time.monotonic() < idle_limit:
        await asyncio.sleep(_LOOK)
    for connection in list(server.server_state.connections):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if getattr(connection, "cycle", True) is None and not _unread(connection):
                connection.transport.close()
    server.should_exit = True


async def _stop_accepting(server: uvicorn.Server, listening: Iterable[socket.socket]) -> None:
    """Leave the listening socket to the successor, dropping nothing that was accepted.

    asyncio makes a transport of an accepted connection one turn later, and fails to once its server is closed.
    """
    loop = asyncio.get_running_loop()
    for listener in server.servers:
        for one in listener.sockets:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError, OSError):
                loop.remove_reader(one.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    for listener in server.servers:
        listener.close()
    await asyncio.sleep(0)
    for bound in listening:
        bound.close()


def _last(connection: Any) -> None:
    """Have the next answer that begins here be the last one; of requests that wait in line, the answer to the last."""
    connection.app = LastAnswer(connection.app)
    line = [getattr(connection, "cycle", None), *(cycle for cycle, _ in reversed(getattr(connection, "pipeline", ())))]
    cycle = line[-1]
    if cycle is not None and not cycle.response_started:
        cycle.keep_alive = False


def _unread(connection: Any) -> int:
    """Bytes that have arrived on a connection and were not read."""
    found = connection.transport.get_extra_info("socket")
    count: bytes = fcntl.ioctl(found.fileno(), termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", count)[0])
