"""Looks at bodies on their way, where the policy or a recogniser asks: digests, first bytes, never the whole.

Streams pass untouched: a chunk is hashed and handed on at once. On the serving loop.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from time import monotonic

from deia_audit.escape import quoted
from deia_hardening.plugin import Message, Receive, Send


class BodyWatch:
    """What went by in one direction: its length, a keyed digest, its first `limit` bytes, its last `ending` ones.

    `began` is when the first byte came (monotonic seconds), 0 before.
    """

    __slots__ = ("_ending", "_mac", "began", "first", "last", "limit", "size")

    def __init__(self, key: bytes | None, limit: int, ending: int = 0) -> None:
        self._mac = hmac.new(key, digestmod=sha256) if key is not None else None
        self.first = self.last = b""
        self.limit = limit
        self._ending = ending
        self.size = 0
        self.began = 0.0

    def feed(self, data: bytes) -> None:
        if not self.size:
            self.began = monotonic()
        self.size += len(data)
        if self._ending:
            self.last = (self.last + data[-self._ending :])[-self._ending :]
        if self._mac is not None:
            self._mac.update(data)
        missing = self.limit - len(self.first)
        if missing > 0:
            self.first += data[:missing]

    @property
    def digest(self) -> str:
        """The keyed digest of what went by, "" where there is no key for it."""
        return f"hmac-sha256:{self._mac.hexdigest()}" if self._mac is not None else ""

    def members(self, *, text: bool, encrypt: Callable[[str], str] | None = None) -> bytes:
        """Return the members of this direction's object in a record; `encrypt` hides the text under a subject's key."""
        parts = [b'"size":%d' % self.size]
        if text:
            shown = self.first.decode("utf-8", "replace")
            if encrypt is not None:
                shown = encrypt(shown)
            parts.append(b'"text":' + quoted(shown, len(shown)))
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
