"""A request is one object: its context, which is what the client saw of it as well."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rich.pretty import pretty_repr

from deia_hardening import RequestContext, harden
from deia_hardening.testing import request


async def test_a_callback_finds_its_request_until_the_call_is_over(home: Path) -> None:
    seen: list[RequestContext] = []
    within: list[RequestContext | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context = scope["deia_hardening"]
        seen.append(context)
        context.exchange.on_start(lambda exchange: within.append(exchange.context))
        context.exchange.on_end(lambda exchange: within.append(exchange.context))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    await request(harden(app, {"home": str(home)}), "GET", "/")
    (context,) = seen
    assert within == [context, context]
    assert context.exchange is context and context.status == 204
    assert context.context is None


def _context() -> RequestContext:
    class Revision:
        number = 1

    headers = [(b"authorization", b"Bearer secret")]
    scope = {"type": "http", "method": "GET", "headers": headers}
    return RequestContext(None, None, scope=scope, revision=Revision(), received=0.0, headers=headers)  # type: ignore[arg-type]


def test_a_context_that_is_printed_tells_no_header() -> None:
    context = _context()
    for shown in (repr(context), str(context), pretty_repr(context), repr(context.send)):
        assert context.id in shown and "secret" not in shown


def test_a_copied_scope_holds_the_same_request() -> None:
    context = _context()
    assert copy.deepcopy({"deia_hardening": context})["deia_hardening"] is context
