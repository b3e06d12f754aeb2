"""The one way to refuse: `application/problem+json` (RFC 9457), with `Retry-After` where waiting helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from deia_hardening.errors import HardeningError
from deia_hardening.types import Send


class Problem(HardeningError):  # noqa: N818 - RFC 9457's word
    """A refusal with its status. Raise it in an operation's handler, or `await problem.send(send)` in a layer.

    `detail` says what happened, what was kept and what to do. `retry_after` is in seconds. `extensions` are
    further members of the body; `headers` further response headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        type: str = "about:blank",  # noqa: A002 - RFC 9457's word
        title: str = "",
        retry_after: float | None = None,
        extensions: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.type = type
        self.title = title or HTTPStatus(status).phrase
        self.retry_after = retry_after
        self.extensions = dict(extensions or {})
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body."""
        members: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status}
        members["detail"] = self.detail
        members.update(self.extensions)
        return msgspec.json.encode(members)

    def raw_headers(self, length: int) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(length).encode()),
            (b"cache-control", b"no-store"),
        ]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        headers.extend(
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()
        )
        return headers

    async def send(self, send: Send, *, websocket: bool = False) -> None:
        """Answer an HTTP request; with `websocket`, refuse a handshake (the server turns the close into 403)."""
        if websocket:
            await send({"type": "websocket.close", "code": 1013 if self.retry_after is not None else 1008})
            return
        body = self.body()
        await send({"type": "http.response.start", "status": self.status, "headers": self.raw_headers(len(body))})
        await send({"type": "http.response.body", "body": body})
