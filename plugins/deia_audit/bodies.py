"""Looks at bodies on their way, where the policy or a recogniser asks: digests, first bytes, never the whole.

Streams pass untouched: a chunk is hashed and handed on at once. On the serving loop.
"""

from __future__ import annotations

import hmac
import zlib
from collections.abc import Callable, Iterable
from hashlib import sha256
from time import monotonic

from deia_audit.escape import quoted
from deia_hardening.plugin import Message, Receive, Send

_MOST_UNPACKED = 16 * 1024 * 1024
"""Bytes of a packed answer that are unpacked, for what its end tells."""


class BodyWatch:
    """What went by in one direction: its length, a keyed digest, its first `limit` bytes, its last `ending` ones.

    Length and digest are of the bytes as they went by; `first`, `last` and `seen` (their length) of what these say,
    unpacked where they are gzip or deflate, nothing where they are packed otherwise. `began` is when the first byte
    came (monotonic seconds), 0 before.
    """

    __slots__ = ("_ending", "_mac", "_unpack", "began", "first", "last", "limit", "seen", "size")

    def __init__(self, key: bytes | None, limit: int, ending: int = 0) -> None:
        self._mac = hmac.new(key, digestmod=sha256) if key is not None else None
        self.first = self.last = b""
        self.limit = limit
        self._ending = ending
        self.size = self.seen = 0
        self.began = 0.0
        self._unpack: _Unpacking | None = None

    def packed(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Learn from the headers in front of the body how it is packed."""
        for name, value in headers:
            if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
                self._unpack = _Unpacking(value.strip().lower(), self.limit if not self._ending else _MOST_UNPACKED)

    def feed(self, data: bytes) -> None:
        if not self.size:
            self.began = monotonic()
        self.size += len(data)
        if self._mac is not None:
            self._mac.update(data)
        if self._unpack is not None:
            data = self._unpack(data)
        self.seen += len(data)
        if self._ending:
            self.last = (self.last + data[-self._ending :])[-self._ending :]
        missing = self.limit - len(self.first)
        if missing > 0:
            self.first += data[:missing]

    @property
    def stopped(self) -> bool:
        """Whether the body was packed in a way, or to a length, that it was not read to its end."""
        return self._unpack is not None and self._unpack.left <= 0

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
            if self.seen > len(self.first) or self.stopped:
                parts.append(b'"cut":true')
        return b",".join(parts)


class _Unpacking:
    """Unpacks a body as it goes by, up to `most` bytes of what it says."""

    def __init__(self, encoding: bytes, most: int) -> None:
        bits = {b"gzip": 31, b"x-gzip": 31, b"deflate": 47}.get(encoding)
        self.left = most if bits is not None else 0
        self._inflate = zlib.decompressobj(bits or 31)

    def __call__(self, data: bytes) -> bytes:
        if self.left <= 0 or self._inflate.eof:
            return b""
        try:
            found = self._inflate.decompress(data, self.left)
        except zlib.error:
            self.left = 0
            return b""
        self.left -= len(found)
        return found


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
        elif message["type"] == "http.response.start":
            watch.packed(message.get("headers") or ())
        await send(message)

    return watched
