"""Looks at bodies on their way, where the policy or a recogniser asks: digests, first bytes, never the whole.

Streams pass untouched: a chunk is hashed and handed on at once. On the serving loop.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from deia_audit.escape import quoted
from deia_hardening.plugin import Message, Receive, Send


class BodyWatch:
    """What went by in one direction: its length, a keyed digest, its first `limit` bytes."""

    __slots__ = ("_mac", "first", "limit", "size")

    def __init__(self, key: bytes | None, limit: int) -> None:
        self._mac = hmac.new(key, digestmod=sha256) if key is not None else None
        self.first = b""
        self.limit = limit
        self.size = 0

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        if self._mac is not None:
            self._mac.update(data)
        missing = self.limit - len(self.first)
        if missing > 0:
            self.first += data[:missing]

    def members(self, *, text: bool) -> bytes:
        """Return the members of this direction's object in a record."""
        parts = [b'"size":%d' % self.size]
        if self._mac is not None:
            parts.append(b'"digest":"hmac-sha256:%b"' % self._mac.hexdigest().encode())
        if text:
            parts.append(b'"text":' + quoted(self.first.decode("utf-8", "replace"), self.limit))
            if self.size > len(self.first):
                parts.append(b'"cut":true')
        return b",".join(parts)


def watch_receive(receive: Receive, watch: BodyWatch) -> Receive:
    """Return a `receive` that shows request bodies to `watch`."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            body = message.get("body")
            if body:
                watch.feed(body)
        return message

    return watched


def watch_send(send: Send, watch: BodyWatch) -> Send:
    """Return a `send` that shows response bodies to `watch`."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.body":
            body = message.get("body")
            if body:
                watch.feed(body)
        await send(message)

    return watched
