"""The active check of an upstream that is reached by HTTP: connect, and where a path is set, ask for it.

It uses a connection of its own, so that a full pool does not make a healthy upstream look dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from deia_hardening.upstream.base import Readiness
from deia_hardening.upstream.request import encode, encode_target
from deia_hardening.upstream.response import Malformed, ResponseReader
from deia_hardening.upstream.streamed import dial

if TYPE_CHECKING:
    from deia_hardening.upstream.http import HttpUpstream


async def probe(upstream: HttpUpstream) -> Readiness:
    """Check once, within `probe_timeout`. Never raises for what the upstream does."""
    settings = upstream.settings
    try:
        with anyio.fail_after(settings.probe_timeout):
            stream, _ = await dial(upstream)
            try:
                if not settings.probe_path:
                    return Readiness(True, "connected")
                return await _ask(upstream, stream)
            finally:
                await anyio.aclose_forcefully(stream)
    except TimeoutError:
        return Readiness(False, f"no answer within {settings.probe_timeout}")
    except (ConnectionRefusedError, FileNotFoundError) as error:
        return Readiness(False, str(error), absent=True)
    except (OSError, Malformed, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        return Readiness(False, str(error) or type(error).__name__)


async def _ask(upstream: HttpUpstream, stream: Any) -> Readiness:
    path, _, query = upstream.settings.probe_path.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"user-agent", b"deia-hardening-probe")],
        "http_version": "1.1",
    }
    target = encode_target(scope, upstream.route.prefix)
    head = encode(scope, upstream.route, target, (*upstream.signed(scope, target), b"connection: close"))
    await stream.send(head.framed(0))
    reader = ResponseReader(upstream.settings.max_head, upstream.settings.max_headers)
    reader.begin()
    while not reader.started:
        reader.feed(await stream.receive(64 * 1024))
    status = next(event["status"] for event in reader.events if event["type"] == "http.response.start")
    return Readiness(status < 500, f"GET {path} answered {status}")
