"""Apps as people compose them, asked through Starlette's client, bare and hardened with all five plugins.

What the client gets must be equal: mounted apps, middleware, pages of errors, state, overrides, lifespans that fail;
on asyncio and trio.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from deia_hardening import harden
from deia_hardening.app import find_core

Ask = Callable[[TestClient], Any]
BACKENDS = ("asyncio", "trio")


def real() -> str:
    return "real"


def make(**options: Any) -> FastAPI:
    """An app with a bit of everything."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.up = True
        yield {"pool": ["lifespan"]}
        app.state.up = False

    app = FastAPI(lifespan=lifespan, **options)

    class Marks(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            request.state.marked = request.url.path
            response = await call_next(request)
            response.headers["x-marked"] = "1"
            return response

    app.add_middleware(Marks)
    app.add_middleware(GZipMiddleware, minimum_size=500)
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["GET", "PUT"])

    @app.get("/state")
    async def state(request: Request) -> dict[str, Any]:
        return {
            "pool": getattr(request.state, "pool", None),
            "marked": request.state.marked,
            "up": getattr(request.app.state, "up", None),
            "url": str(request.url_for("state")),
            "root": request.scope["root_path"],
            "keys": sorted(set(request.scope) - {"deia_hardening"}),
        }

    @app.get("/big")
    async def big() -> dict[str, str]:
        return {"text": "x" * 5000}

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse((f"{number}\n" * 50 for number in range(50)), headers={"x-own": "1"})

    @app.get("/depends")
    def depends(value: str = Depends(real)) -> str:
        return value

    @app.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418, {"short": "stout"}, headers={"x-pot": "1"})

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("on purpose")

    @app.post("/body")
    async def body(request: Request, tasks: BackgroundTasks) -> Any:
        done: list[str] = request.app.state.done
        tasks.add_task(done.append, "background")
        return {"length": len(await request.body()), "gone": await request.is_disconnected()}

    @app.post("/typed/{number}")
    def typed(number: int, item: dict[str, int]) -> dict[str, int]:
        return {**item, "number": number}

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="chat", headers=[(b"x-own", b"1")])
        while True:
            text = await websocket.receive_text()
            if text == "bye":
                await websocket.close(4001, "bye")
                return
            if text == "policy":
                raise WebSocketException(1008, "policy")
            if text == "fails":
                raise RuntimeError("on purpose")
            await websocket.send_json({"got": text, "pool": getattr(websocket.state, "pool", None)})

    @app.websocket("/denied")
    async def denied(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("no", 402, headers={"x-own": "1"}))

    inner = Starlette(routes=[Route("/where", where), Route("/fails", inner_fails)])
    app.mount("/static", StaticFiles(directory=Path(__file__).parent))
    app.mount("/inner", inner)
    app.state.done = []
    return app


async def where(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.scope['root_path']} {request.url} {request.app.debug}")


async def inner_fails(request: Request) -> PlainTextResponse:
    raise RuntimeError("inner, on purpose")


def told(answer: Any) -> Any:
    return answer.status_code, list(answer.headers.multi_items()), answer.content


def essence(call: Callable[[], Any]) -> Any:
    """What a call gave or raised."""
    try:
        return call()
    except Exception as error:
        return (type(error).__name__, str(error), getattr(error, "code", None), getattr(error, "reason", None))


def plain(client: TestClient) -> Any:
    asked = [
        ("GET", "/state", {}),
        ("GET", "/big", {"accept-encoding": "gzip"}),
        ("GET", "/big", {"accept-encoding": "identity"}),
        ("HEAD", "/big", {}),
        ("GET", "/stream", {"accept-encoding": "gzip"}),
        ("GET", "/stream", {"accept-encoding": "identity"}),
        ("GET", "/depends", {}),
        ("GET", "/teapot", {}),
        ("GET", "/nothing", {}),
        ("DELETE", "/big", {}),
        ("GET", "/big/", {}),
        ("GET", "/inner/where?a=1&a=2", {}),
        ("GET", "/inner/nothing", {}),
        ("GET", "/static/run_suite.py", {"range": "bytes=0-9"}),
        ("GET", "/static/../conftest.py", {}),
        ("OPTIONS", "/big", {"origin": "https://a.example", "access-control-request-method": "PUT"}),
        ("OPTIONS", "/big", {"origin": "https://b.example", "access-control-request-method": "POST"}),
        ("GET", "/big", {"origin": "https://a.example"}),
        ("GET", "/openapi.json", {}),
        ("GET", "/docs", {}),
        ("GET", "/deia/", {}),
        ("GET", "/api/nothing", {}),
    ]
    seen = [told(client.request(method, path, headers=headers)) for method, path, headers in asked]
    seen.append(told(client.post("/body", content=b"x" * 70_000)))
    seen.append(told(client.post("/body", content=iter([b"a", b"", b"b"]))))
    seen.append(told(client.post("/typed/7", json={"a": 1})))
    seen.append(told(client.post("/typed/seven", json={"a": "b"})))
    seen.append(told(client.post("/typed/7", content=b"no json")))
    return [*seen, list(client.app.state.done)]  # type: ignore[attr-defined]


def websockets(client: TestClient) -> Any:
    def session(*texts: str) -> Any:
        seen: list[Any] = []
        with client.websocket_connect("/ws", subprotocols=["chat"]) as ws:
            seen.append((ws.accepted_subprotocol, ws.extra_headers))
            for text in texts:
                ws.send_text(text)
                seen.append(essence(ws.receive_json))
        return seen

    return [
        essence(lambda: session("a", "b")),
        essence(lambda: session("a", "bye")),
        essence(lambda: session("policy")),
        essence(lambda: session("fails")),
        essence(lambda: told_denial(client)),
        essence(lambda: client.websocket_connect("/nothing").__enter__()),
    ]


def told_denial(client: TestClient) -> Any:
    try:
        with client.websocket_connect("/denied"):
            return "accepted"
    except WebSocketDisconnect as error:
        return told(error) if hasattr(error, "status_code") else (error.code, error.reason)


def errors(client: TestClient) -> Any:
    return [essence(lambda path=path: told(client.get(path))) for path in ("/fails", "/inner/fails", "/teapot")]


def overridden(client: TestClient) -> Any:
    app: Any = client.app
    seen = [client.get("/depends").json()]
    app.dependency_overrides[real] = lambda: "set"
    seen.append(client.get("/depends").json())
    app.dependency_overrides = {real: lambda: "assigned"}
    seen.append(client.get("/depends").json())
    app.dependency_overrides.clear()
    return [*seen, client.get("/depends").json()]


def html(client: TestClient) -> Any:
    """The debug page: its frames differ (they show the call stack), its status, type and message do not."""
    answer = client.get("/fails", headers={"accept": "text/html"})
    return answer.status_code, answer.headers["content-type"], b"on purpose" in answer.content


def both(home: Path, ask: Ask, *, options: Any = None, lifespan: bool = True, **client: Any) -> Any:
    """Ask the bare and the hardened app; what they gave must be equal."""
    seen = []
    for hardened in (False, True):
        app: Any = make(**(options or {}))
        if hardened:
            settings: dict[str, Any] = {
                name: {} for name in ("audit", "config", "degradation", "migration", "recovery")
            }
            assert harden(app, {"home": str(home), **settings}) is app
        testing = TestClient(app, **client)
        if lifespan:
            with testing:
                seen.append(ask(testing))
        else:
            seen.append(ask(testing))
    assert seen[1] == seen[0]
    return seen[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lifespan", [True, False])
def test_answers_are_the_apps_own(home: Path, backend: Any, lifespan: bool) -> None:
    seen = both(home, plain, lifespan=lifespan, backend=backend)
    assert seen[0][0] == 200
    assert seen[-1] == ["background", "background"]


@pytest.mark.parametrize("root_path", ["/v1", "/v1/"])
def test_a_root_path_is_the_apps_own(home: Path, root_path: str) -> None:
    both(home, plain, root_path=root_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_websockets_are_the_apps_own(home: Path, backend: Any) -> None:
    seen = both(home, websockets, backend=backend)
    assert seen[1] == ("WebSocketDisconnect", "", 4001, "bye") or "bye" in str(seen[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("debug", [True, False])
def test_errors_are_the_apps_own(home: Path, backend: Any, raises: bool, debug: bool) -> None:
    if debug and not raises:
        assert both(home, html, options={"debug": True}, raise_server_exceptions=False, backend=backend)[0] == 500
        return
    both(home, errors, options={"debug": debug}, raise_server_exceptions=raises, backend=backend)


def test_overrides_set_after_hardening_count(home: Path) -> None:
    assert both(home, overridden) == ["real", "set", "assigned", "real"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_lifespan_raises_reaches_the_server(home: Path, backend: Any, when: str) -> None:
    def fails() -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            if when == "before":
                raise RuntimeError("on the way up")
            yield
            raise RuntimeError("on the way down")

        return Starlette(lifespan=lifespan)

    seen = []
    hardened = harden(fails(), {"home": str(home), "audit": {}, "degradation": {}, "migration": {}, "recovery": {}})
    for app in (fails(), hardened):
        with pytest.raises(RuntimeError) as error, TestClient(app, backend=backend) as client:
            seen.append(client.get("/").status_code)
        seen.append((type(error.value), str(error.value)))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    core = find_core(hardened)
    assert core is not None
    assert not core.ready


def test_a_hardened_app_mounted_in_a_hardened_app_answers_as_bare(home: Path) -> None:
    def compose(wrap: Callable[[Any, str], Any]) -> Any:
        inner = wrap(Starlette(routes=[Route("/where", where), Route("/fails", inner_fails)]), "inner")
        middleware = [
            Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"]),
            Middleware(SessionMiddleware, secret_key="x"),
        ]
        outer = Starlette(routes=[Route("/where", where), Mount("/m", inner)], middleware=middleware)
        return wrap(outer, "outer")

    def wrap(app: Any, name: str) -> Any:
        settings: dict[str, Any] = {one: {} for one in ("audit", "config", "degradation", "migration", "recovery")}
        return harden(app, {"home": str(home / name), **settings})

    seen = []
    for app in (compose(lambda app, name: app), compose(wrap)):
        client = TestClient(app, raise_server_exceptions=False)
        asked = [client.get(path) for path in ("/where", "/m/where", "/m/fails", "/m/nothing", "/m", "/nothing")]
        asked.append(client.get("/where", headers={"host": "elsewhere"}))
        seen.append([told(answer) for answer in asked])
    assert seen[1] == seen[0]
    assert [status for status, *_ in seen[0]] == [200, 200, 500, 404, 404, 404, 400]


def test_redirects_and_disconnects_are_the_apps_own(home: Path) -> None:
    def compose() -> Starlette:
        async def reads(request: Request) -> PlainTextResponse:
            try:
                return PlainTextResponse(str(len(await request.body())))
            except ClientDisconnect:
                return PlainTextResponse("gone")

        return Starlette(routes=[Route("/", reads, methods=["POST"])], middleware=[Middleware(HTTPSRedirectMiddleware)])

    seen = []
    for app in (compose(), harden(compose(), {"home": str(home), "audit": {}, "degradation": {}, "migration": {}})):
        client = TestClient(app, follow_redirects=False)
        seen.append(told(client.post("/", content=b"x")))
        seen.append(told(client.post("https://testserver/", content=b"x")))
    assert seen[:2] == seen[2:]


async def test_an_app_is_hardened_on_a_running_loop_without_any_input_or_output(home: Path) -> None:
    """Suites with blockbuster on (Starlette's own is one) build apps inside their tests' loops."""
    settings: dict[str, Any] = {one: {} for one in ("audit", "config", "degradation", "migration", "recovery")}
    harden(make(), {"home": str(home), **settings})  # what is read once per process
    app = make()
    with blockbuster_ctx():
        assert harden(app, {"home": str(home), **settings}) is app


def test_threads_with_loops_of_their_own_share_one_hardened_app(home: Path) -> None:
    settings: dict[str, Any] = {one: {} for one in ("audit", "config", "degradation", "migration", "recovery")}
    app = harden(make(), {"home": str(home), **settings})
    expected = told(TestClient(make()).get("/state"))
    seen: list[Any] = []

    def ask(backend: Any) -> None:
        client = TestClient(app, backend=backend)
        for _ in range(5):
            seen.append(told(client.get("/state")))

    threads = [threading.Thread(target=ask, args=(backend,)) for backend in BACKENDS * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 30
