"""Calling an ASGI app without a server, and recording all it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import anyio

from deia_hardening.types import ASGIApp, Message, Scope


def http_scope(
    method: str = "GET",
    path: str = "/",
    *,
    headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] = (),
    query: str = "",
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    **more: Any,
) -> Scope:
    """An HTTP scope as a server makes it."""
    pairs = (
        [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        if isinstance(headers, Mapping)
        else list(headers)
    )
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": pairs,
        "client": client,
        "server": ("127.0.0.1", 80),
        "state": {},
        **more,
    }


def websocket_scope(path: str = "/", **more: Any) -> Scope:
    """A WebSocket scope as a server makes it."""
    scope = http_scope("GET", path)
    del scope["method"]
    scope.update(type="websocket", scheme="ws", subprotocols=[], **more)
    return scope


class ASGIRecorder:
    """Calls `app` once with scripted incoming messages and records what it sends.

    When the script has ended `receive` gives a disconnect: at once, as from a client that has gone, or with
    `stays=True` when the answer is complete. `hang=True`: it waits for ever. Works on asyncio and trio.
    """

    def __init__(self, app: ASGIApp, scope: Scope, *messages: Message, hang: bool = False, stays: bool = False) -> None:
        self.app = app
        self.scope = scope
        self._script = list(messages)
        self._hang = hang
        self._stays = stays
        self._complete: anyio.Event | None = None
        self.sent: list[Message] = []
        self.error: BaseException | None = None

    async def receive(self) -> Message:
        if self._script:
            return self._script.pop(0)
        if self._hang:
            await anyio.sleep_forever()
        if self._complete is not None:
            await self._complete.wait()
        return {
            "type": "websocket.disconnect" if self.scope["type"] == "websocket" else "http.disconnect",
            "code": 1001,
        }

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self._complete is not None and message["type"] == "http.response.body" and not message.get("more_body"):
            self._complete.set()

    async def run(self) -> ASGIRecorder:
        """Call the app to its end; an exception is kept in `error`, not raised."""
        if self._stays:
            self._complete = anyio.Event()  # made where the loop is
        try:
            await self.app(self.scope, self.receive, self.send)
        except Exception as error:
            self.error = error
        return self

    @property
    def status(self) -> int:
        """The response's status, 0 without one."""
        return next((m["status"] for m in self.sent if m["type"].endswith("response.start")), 0)

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers by lower-case name (the last one wins)."""
        start = next((m for m in self.sent if m["type"].endswith("response.start")), {})
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start.get("headers", ())}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")

    @property
    def kinds(self) -> list[str]:
        """The types of what was sent, in order."""
        return [m["type"] for m in self.sent]


async def request(app: ASGIApp, method: str, path: str, body: bytes = b"", **scope: Any) -> ASGIRecorder:
    """One HTTP request with a whole body, from a client that waits for the whole answer."""
    message = {"type": "http.request", "body": body, "more_body": False}
    return await ASGIRecorder(app, http_scope(method, path, **scope), message, stays=True).run()
