"""One made-up request to a version, and its whole answer: what canary tests, webhooks and mirroring share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import attrs

from deia_hardening.plugin import ASGIApp, Message, Scope


@attrs.frozen
class Answer:
    """A whole answer; `body` is cut at the caller's limit and then `cut` is true. Status 0: none came."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    cut: bool = False

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key.lower() == name), b"")


def request_scope(method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Scope:
    """The ASGI scope of a made-up request; `target` is a path with its query."""
    parts = urlsplit(target)
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    names = {name for name, _ in raw}
    if b"host" not in names:
        raw.append((b"host", b"localhost"))
    if body and b"content-length" not in names:
        raw.append((b"content-length", str(len(body)).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(parts.path),
        "raw_path": parts.path.encode("latin-1", "replace"),
        "query_string": parts.query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": raw,
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "extensions": {},
        "state": {},
    }


async def ask(app: ASGIApp, scope: Scope, body: bytes, *, limit: int, timeout: float) -> Answer:
    """Call `app` once. Raises TimeoutError after `timeout` seconds, and what the app raises."""
    status = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    parts: list[bytes] = []
    size = 0
    sent = False
    ended = anyio.Event()

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers, size
        kind = message["type"]
        if kind == "http.response.start":
            status = message["status"]
            headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        elif kind == "http.response.body":
            data: Any = message.get("body", b"")
            if size <= limit:
                parts.append(bytes(data))
            size += len(data)
            if not message.get("more_body"):
                ended.set()

    with anyio.fail_after(timeout):
        await app(scope, receive, send)
    return Answer(status, headers, b"".join(parts)[:limit], size > limit)
