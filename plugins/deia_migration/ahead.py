"""Reading a request's JSON body before its version is chosen, where the session's id is in it (`client:json:NAME`).

Only bodies that are announced as JSON, with a length within the limit, are read; the version that is chosen gets them
as they came. Nothing is read where no such source is set.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deia_hardening.plugin import Message, Receive, Scope
from deia_migration.keys import LONGEST

_METHODS = frozenset({"POST", "PUT", "PATCH"})


class BodyReader:
    """Finds the member `name` of JSON bodies of at most `limit` bytes. One object serves all requests."""

    def __init__(self, name: str, limit: int) -> None:
        self._decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        self._name = name
        self._limit = limit

    def wants(self, scope: Scope) -> bool:
        """Whether this request's body is looked into."""
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            return False
        json, length = False, -1
        for name, value in scope["headers"]:
            if name == b"content-type":
                json = b"json" in value
            elif name == b"content-length" and value.isdigit():
                length = int(value[:20])
        return json and 0 <= length <= self._limit

    async def read(self, receive: Receive) -> tuple[bytes | None, Receive]:
        """The session's id, or None; and what the version is to call instead of `receive`."""
        messages: list[Message] = []
        body = b""
        while True:
            message = await receive()
            messages.append(message)
            if message["type"] != "http.request":
                break
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > self._limit:
                break
        messages.reverse()

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        return self.find(body), again

    def find(self, body: bytes) -> bytes | None:
        """The value of the member, when it is a text or a number."""
        try:
            raw = self._decode(body).get(self._name)
            value: Any = msgspec.json.decode(raw) if raw is not None else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass")[:LONGEST] or None
        return str(value).encode() if type(value) is int else None
