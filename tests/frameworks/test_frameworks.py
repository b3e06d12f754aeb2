"""Other frameworks' apps: a `Hardened` that behaves as the app does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deia_hardening import Hardened, harden
from deia_hardening.testing import ASGIRecorder, http_scope, request, running, websocket_scope


async def test_litestar(home: Path) -> None:
    litestar = pytest.importorskip("litestar")
    up: list[str] = []
    routes: list[str] = []

    @litestar.get("/bots/{number:int}")
    async def bot(number: int) -> dict[str, int]:
        return {"number": number}

    app = litestar.Litestar(
        [bot], on_startup=[lambda: up.append("up")], on_shutdown=[lambda: up.append("down")], openapi_config=None
    )
    hardened: Any = harden(app, {"home": str(home), "audit": {}})
    assert isinstance(hardened, Hardened)
    assert hardened.routes == app.routes
    async with running(hardened, {}) as service:
        answer = await service.get("/bots/7")
        assert (answer.status, answer.body) == (200, b'{"number":7}')
        assert (await service.get("/nothing")).status == 404
        assert routes == []
    assert up == ["up", "down"]


def test_django(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    django = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(ROOT_URLCONF="django_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="test", DEBUG=False)
    import sys
    import types

    urls = types.ModuleType("django_urls")
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def hello(request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(f"hello {name}", headers={"x-django": "1"})

    urls.urlpatterns = [path("hello/<str:name>", hello)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django_urls", urls)
    django.setup()
    from django.core.asgi import get_asgi_application

    app = harden(get_asgi_application(), {"home": str(home), "audit": {}})

    async def main() -> ASGIRecorder:
        message = {"type": "http.request", "body": b"", "more_body": False}
        headers = {"host": "testserver"}
        return await ASGIRecorder(app, http_scope(path="/hello/you", headers=headers), message, hang=True).run()

    answer = asyncio.run(main())
    assert answer.error is None
    assert (answer.status, answer.body, answer.headers["x-django"]) == (200, b"hello you", "1")


async def test_a_bare_function_with_websockets(home: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403})
        else:
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b"short and stout"})

    hardened = harden(app, {"home": str(home), "audit": {}})
    assert (await request(hardened, "GET", "/")).status == 418
    refused = await ASGIRecorder(hardened, websocket_scope(), {"type": "websocket.connect"}).run()
    assert refused.sent == [{"type": "websocket.close", "code": 4403}]


async def test_socketio_polling_and_mcp_keep_their_sessions(home: Path) -> None:
    mcp = pytest.importorskip("mcp.server.fastmcp", reason="the MCP SDK is not installed")
    server = mcp.FastMCP("demo", stateless_http=False, json_response=True)

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    app = server.streamable_http_app()
    hardened = harden(app, {"home": str(home), "audit": {}})
    assert hardened is app
    hello = (
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},'
        b'"clientInfo":{"name":"t","version":"1"}}}'
    )
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream", "host": "127.0.0.1"}
    async with running(hardened, {}) as service:
        first = await service.post("/mcp", hello, headers=headers)
        assert first.status == 200
        session = first.headers["mcp-session-id"]
        call = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"add","arguments":{"a":2,"b":3}}}'
        started = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
        assert (await service.post("/mcp", started, headers={**headers, "mcp-session-id": session})).status == 202
        second = await service.post("/mcp", call, headers={**headers, "mcp-session-id": session})
        assert b'"text":"5"' in second.body
