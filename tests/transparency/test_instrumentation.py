"""What puts itself around an app after `harden()`, as OpenTelemetry's instrumentation of FastAPI does."""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deia_hardening import RequestContext, current, harden

FIVE: dict[str, Any] = {name: {} for name in ("audit", "config", "degradation", "migration", "recovery")}


def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(current(RequestContext).route)


def fail(request: Request) -> None:
    raise RuntimeError("as the app does")


class Tracing:
    """Counts the calls that pass, as a tracer's spans would."""

    calls: list[str]

    def __init__(self, app: Any, calls: list[str]) -> None:
        self.app = app
        self.calls = calls

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append(scope.get("path", scope["type"]))
        await self.app(scope, receive, send)


def instrument(app: Any, calls: list[str]) -> None:
    """Take the stack apart and build it anew, the way that instrumentation does, which insists on Starlette's own."""
    build = app.build_middleware_stack

    def rebuilt(self: Any) -> Any:
        stack = build()
        assert isinstance(stack, ServerErrorMiddleware)
        own = ServerErrorMiddleware(stack.app, handler=stack.handler, debug=stack.debug)
        return ServerErrorMiddleware(Tracing(own, calls))

    app.build_middleware_stack = types.MethodType(rebuilt, app)


def wrap(app: Any, calls: list[str]) -> None:
    """Put a builder around that takes nothing apart."""
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Tracing(build(), calls)


@pytest.mark.parametrize("how", [instrument, wrap])
@pytest.mark.parametrize("lifespan", [True, False])
def test_an_app_that_is_instrumented_after_harden_is_traced_once_and_hardened(
    tmp_path: Path, lifespan: bool, how: Any
) -> None:
    app = harden(Starlette(routes=[Route("/hello", hello), Route("/fail", fail)]), {"home": str(tmp_path), **FIVE})
    calls: list[str] = []
    how(app, calls)
    client = TestClient(app, raise_server_exceptions=False)
    with client if lifespan else contextlib.nullcontext():
        assert client.get("/hello").text == "/hello"
        assert client.get("/hello").text == "/hello"
        assert client.get("/fail").status_code == 500
        assert client.get("/deia/readyz").status_code == 200
        assert client.get("/elsewhere").status_code == 404
    paths = [call for call in calls if call != "lifespan"]
    seen = paths if lifespan else [path for path in paths if path != "/deia/readyz"]
    assert seen == ["/hello", "/hello", "/fail", "/elsewhere"]


def test_with_a_lifespan_the_chain_is_outermost_again_and_sees_the_answer_to_an_exception(tmp_path: Path) -> None:
    app = harden(Starlette(routes=[Route("/fail", fail)]), {"home": str(tmp_path), **FIVE})
    instrument(app, [])
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/fail")
    records = (tmp_path / "logs" / "audit-trail.jsonl").read_text().rpartition("\n")[0].splitlines()
    (record,) = [line for line in records if '"GET /fail"' in line]
    assert '"status":500' in record


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("lifespan", [True, False])
def test_who_walks_the_stack_finds_every_layer(tmp_path: Path, lifespan: bool, first: bool) -> None:
    """FastAPI's own telemetry looks for OpenTelemetry's layer so, and traces each request a second time without it."""
    app = Starlette(routes=[Route("/hello", hello)])
    if first:
        instrument(app, [])
    app = harden(app, {"home": str(tmp_path), **FIVE})
    if not first:
        instrument(app, [])
    client = TestClient(app)
    with client if lifespan else contextlib.nullcontext():
        client.get("/hello")
        layer, found = app.middleware_stack, []
        while layer is not app.router:
            found.append(type(layer))
            layer = layer.app
    assert Tracing in found
