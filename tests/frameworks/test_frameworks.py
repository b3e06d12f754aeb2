"""Other frameworks' apps: a `Hardened` that behaves as the app does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deia_hardening import Hardened, harden
from deia_hardening.testing import ASGIRecorder, http_scope, request, running, websocket_scope


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
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


async def same(bare: Any, hardened: Any, *asked: tuple[str, str, bytes, dict[str, str]]) -> list[ASGIRecorder]:
    """Ask both the same; every message that a server would get from them must be equal."""
    answers = []
    for method, path, body, headers in asked:
        message = {"type": "http.request", "body": body, "more_body": False}
        headers = {"host": "testserver", "content-length": str(len(body)), **headers}
        scopes = [http_scope(method, path, headers=headers, extensions={}) for _ in range(2)]
        expected = await ASGIRecorder(bare, scopes[0], message, hang=True).run()
        seen = await ASGIRecorder(hardened, scopes[1], message, hang=True).run()
        assert repr(seen.error) == repr(expected.error)
        assert [essence(one) for one in seen.sent] == [essence(one) for one in expected.sent]
        answers.append(seen)
    return answers


def essence(message: Any) -> dict[str, Any]:
    return {key: list(value) if key == "headers" else value for key, value in message.items()}


@pytest.mark.filterwarnings("ignore")
async def test_quart(five: dict[str, Any]) -> None:
    quart = pytest.importorskip("quart", reason="Quart is not installed")

    def make() -> Any:
        app = quart.Quart("demo")

        @app.post("/bots/<int:number>")
        async def bot(number: int) -> Any:
            return {"number": number, "got": (await quart.request.get_json())["x"]}

        @app.get("/stream")
        async def stream() -> Any:
            async def chunks() -> Any:
                for number in range(3):
                    yield f"chunk {number}\n".encode()

            return chunks(), 200, {"content-type": "text/event-stream", "x-own": "1"}

        @app.get("/fails")
        async def fails() -> None:
            raise RuntimeError("on purpose")

        @app.websocket("/ws")
        async def ws() -> None:
            await quart.websocket.send("hello " + await quart.websocket.receive())

        return app

    bare, hardened = make(), harden(make(), five)
    assert isinstance(hardened, Hardened)
    json = {"content-type": "application/json"}
    first, stream, *_ = await same(
        bare,
        hardened,
        ("POST", "/bots/7", b'{"x": 1}', json),
        ("GET", "/stream", b"", {}),
        ("POST", "/bots/7", b"no json", json),
        ("GET", "/fails", b"", {}),
        ("GET", "/nothing", b"", {}),
        ("PUT", "/stream", b"", {}),
    )
    assert (first.status, first.body) == (200, b'{"got":1,"number":7}\n')
    assert stream.body == b"chunk 0\nchunk 1\nchunk 2\n"
    script = ({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "you"})
    seen = [
        await ASGIRecorder(app, websocket_scope("/ws", http_version="1.1"), *script, hang=True).run()
        for app in (bare, hardened)
    ]
    assert {"type": "websocket.send", "bytes": None, "text": "hello you"} in seen[1].sent
    assert seen[1].sent == seen[0].sent


@pytest.mark.blocking  # Sanic's own start asks the platform by a child process
@pytest.mark.filterwarnings("ignore")
async def test_sanic(five: dict[str, Any]) -> None:
    sanic = pytest.importorskip("sanic", reason="Sanic is not installed")
    sanic.Sanic.test_mode = True

    def make(name: str) -> Any:
        app = sanic.Sanic(name, configure_logging=False)

        @app.post("/bots/<number:int>")
        async def bot(request: Any, number: int) -> Any:
            return sanic.json({"number": number, "got": request.json})

        @app.get("/stream")
        async def stream(request: Any) -> None:
            response = await request.respond(content_type="text/event-stream", headers={"x-own": "1"})
            for number in range(3):
                await response.send(f"chunk {number}\n")
            await response.eof()

        return app

    bare, hardened = make("bare"), harden(make("hardened"), five)
    async with running(hardened, {}) as service, alive(bare):
        json = {"content-type": "application/json"}
        first, stream, *_ = await same(
            bare,
            service.app,
            ("POST", "/bots/7", b'{"x":1}', json),
            ("GET", "/stream", b"", {}),
            ("GET", "/nothing", b"", {}),
        )
        assert (first.status, first.body) == (200, b'{"number":7,"got":{"x":1}}')
        assert stream.body == b"chunk 0\nchunk 1\nchunk 2\n"


@contextlib.asynccontextmanager
async def alive(app: Any) -> AsyncIterator[None]:
    """A bare app's lifespan, held open."""
    up, down = asyncio.Event(), asyncio.Event()
    inbox = [{"type": "lifespan.startup"}]

    async def receive() -> Any:
        if inbox:
            return inbox.pop()
        await down.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        up.set()

    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    await up.wait()
    try:
        yield
    finally:
        down.set()
        await task
