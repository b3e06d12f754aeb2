"""A worker that does not own the home's socket hands a request to the one that does, with the caller it has checked.

Both run as one uid on one machine; the owner believes the caller because only that uid reaches its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from deia_hardening.control.api import Api
from deia_hardening.control.auth import write_forwarded
from deia_hardening.control.http import Request, Response
from deia_hardening.control.socket import HomeSocket
from deia_hardening.plugin import Host

_MOST_HEAD: Final = 65536
_PASSED_ON: Final = ("accept", "content-type", "deia-reason", "if-match", "if-none-match")


async def forward(host: Host, api: Api, home: HomeSocket, request: Request) -> Response | None:
    """The owner's answer; None when no owner can be reached, so that it is answered here. Background loop.

    Raises nothing: a caller who may not is refused by `Api.handle`, to which None leads too.
    """
    try:
        caller = await api.authenticate(request)
    except Exception:
        return None
    try:
        reader, writer = await asyncio.open_unix_connection(str(home.path), limit=_MOST_HEAD)
    except OSError:
        return None
    try:
        address = f"{api.prefix}{request.path}" + (f"?{request.query}" if request.query else "")
        lines = [f"{request.method} {address} HTTP/1.0", "host: control", f"content-length: {len(request.body)}"]
        lines.append(f"deia-app: {api.app_name}")
        lines.append(f"deia-forwarded-actor: {write_forwarded(caller)}")
        lines.extend(f"{name}: {request.headers[name]}" for name in _PASSED_ON if name in request.headers)
        writer.write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + request.body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.close()
        return None if request.method in ("GET", "HEAD") else _lost()
    status = int(head[0].split(" ")[1])
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    headers = [pair for pair in headers if pair[0] != "connection"]
    if any(name == "content-length" for name, _ in headers) or status == 304:
        body = b"" if request.method == "HEAD" or status == 304 else await reader.read(-1)
        writer.close()
        return Response(status, headers, body)
    return Response(status, headers, stream=_rest(reader, writer))


def _lost() -> Response:
    from deia_hardening.control.http import problem_response
    from deia_hardening.problem import Problem

    detail = "the worker that owns the control plane went away while it was at it: look at the state, then try again"
    return problem_response(Problem(502, detail))


async def _rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    try:
        while piece := await reader.read(_MOST_HEAD):
            yield piece
    finally:
        with contextlib.suppress(OSError):
            writer.close()
