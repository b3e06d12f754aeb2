"""Wrapping: in place for Starlette and FastAPI, `Hardened` for everything else, never twice, never silently bare."""

from __future__ import annotations

import copy
import gc
import pickle
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from deia_hardening import (
    Hardened,
    HardeningError,
    NotEnabled,
    NotStarted,
    RequestContext,
    SettingsError,
    current,
    harden,
    inject,
)
from deia_hardening.app import find_core
from deia_hardening.testing import ASGIRecorder, http_scope, request


async def number(scope: Any, receive: Any, send: Any) -> None:
    context = scope["deia_hardening"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(context.revision.number).encode()})


def seen_context(route: str = "/seen") -> tuple[FastAPI, list[RequestContext]]:
    contexts: list[RequestContext] = []
    app = FastAPI()

    @app.get(route)
    async def seen() -> dict[str, str]:
        contexts.append(current(RequestContext))
        return {"id": contexts[-1].id}

    return app, contexts


def test_a_fastapi_app_comes_back_itself_and_serves_through_the_chain(home: Path) -> None:
    app, contexts = seen_context()
    hardened = harden(app, {"home": str(home)})
    assert hardened is app
    assert type(hardened) is FastAPI
    client = TestClient(app)
    assert client.get("/seen").json() == {"id": contexts[0].id}
    assert contexts[0].exchange.status == 200
    assert contexts[0].exchange.complete


def test_an_app_whose_stack_was_built_is_wrapped_too(home: Path) -> None:
    app, contexts = seen_context()
    TestClient(app, raise_server_exceptions=False).get("/seen")  # builds the stack; no context: the handler fails
    assert not contexts
    harden(app, {"home": str(home)})
    assert TestClient(app).get("/seen").status_code == 200
    assert len(contexts) == 1


def test_routes_middleware_and_overrides_given_after_harden_count(home: Path) -> None:
    async def user() -> str:
        return "real"

    app = harden(FastAPI(), {"home": str(home)})

    @app.get("/who")
    async def who(name: str = Depends(user)) -> str:
        return name

    class Stamp:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def stamped(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-stamp", b"1"))
                await send(message)

            await self.app(scope, receive, stamped)

    app.add_middleware(Stamp)
    client = TestClient(app)
    answer = client.get("/who")
    assert (answer.json(), answer.headers["x-stamp"]) == ("real", "1")
    app.dependency_overrides = {user: lambda: "fake"}
    assert client.get("/who").json() == "fake"
    app.openapi = lambda: {"openapi": "mine"}  # type: ignore[method-assign]
    assert client.get("/openapi.json").json() == {"openapi": "mine"}


def test_hardening_twice_is_an_error_that_says_so(home: Path) -> None:
    app = harden(FastAPI(title="orders"), {"home": str(home)})
    with pytest.raises(HardeningError, match="orders is hardened already"):
        harden(app, {})
    wrapped = harden(number, {"home": str(home)})
    with pytest.raises(HardeningError, match="hardened already"):
        harden(wrapped, {})


def test_something_that_is_no_app_is_refused() -> None:
    with pytest.raises(HardeningError, match="ASGI application"):
        harden("main:app", {})


@pytest.mark.parametrize("config", [None, 5, [], b"config"])
def test_settings_of_another_kind_are_refused(config: Any) -> None:
    with pytest.raises(SettingsError, match=f"a folder, a file or a mapping, not {type(config).__name__}"):
        harden(number, config)


def test_turned_off_by_the_environment_the_app_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIA__ENABLED", "false")
    app = FastAPI()
    assert harden(app, {}) is app
    assert "build_middleware_stack" not in vars(app)
    assert harden(number, {}) is number


def test_a_wrong_document_is_refused_with_every_problem(home: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        harden(FastAPI(), {"requests": {"lame_duck": 5, "efects": []}, "audti": {}})
    text = str(caught.value)
    assert "requests.lame_duck" in text
    assert "effects" in text
    assert "audit" in text


async def test_a_hardened_forwards_attributes_and_keeps_its_own_state_apart(home: Path) -> None:
    class App:
        colour = "blue"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await number(scope, receive, send)

    inner = App()
    app: Any = harden(inner, {"home": str(home)})
    assert isinstance(app, Hardened)
    assert app.colour == "blue"
    app.colour = "red"
    assert inner.colour == "red"
    del app.colour
    assert inner.colour == "blue"
    with pytest.raises(AttributeError):
        _ = app.missing
    with pytest.raises(TypeError):
        len(app)
    assert (await request(app, "GET", "/")).body == b"1"


def test_a_copy_of_a_hardened_app_is_hardened(home: Path) -> None:
    app, contexts = seen_context()
    harden(app, {"home": str(home)})
    twin = copy.copy(app)
    assert TestClient(twin).get("/seen").status_code == 200
    assert len(contexts) == 1


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
async def test_a_copy_of_a_hardened_callable_is_hardened_by_itself(copier: Any, home: Path) -> None:
    app: Any = harden(number, {"home": str(home)})
    twin = copier(app)
    assert (await request(twin, "GET", "/")).body == b"1"
    assert find_core(twin) is not find_core(app)


async def test_a_hardened_callable_can_be_pickled_for_a_spawned_worker(home: Path) -> None:
    app: Any = harden(number, {"home": str(home)})
    twin = pickle.loads(pickle.dumps(app))
    assert (await request(twin, "GET", "/")).body == b"1"
    assert find_core(twin) is not find_core(app)


def test_used_as_a_middleware_class_it_hardens_what_is_inside(home: Path) -> None:
    app, contexts = seen_context()
    app.add_middleware(Hardened, config={"home": str(home)})
    with TestClient(app) as client:
        assert client.get("/seen").status_code == 200
    assert len(contexts) == 1


def test_a_mounted_hardened_app_keeps_the_outer_context_as_parent(home: Path) -> None:
    inner, contexts = seen_context()
    harden(inner, {"home": str(home)})
    outer = harden(Starlette(routes=[Mount("/v1", inner)]), {"home": str(home)})
    answer = TestClient(outer).get("/v1/seen")
    assert answer.status_code == 200
    parent = contexts[0].parent
    assert parent is not None
    assert parent.id == contexts[0].id
    assert parent.route == "/v1/seen"


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/api/tenants/7/bots/9", "/api/tenants/{tenant}/bots/{bot}"),
        ("/mounted/5/leaf/6", "/mounted/{x}/leaf/{y}"),
        ("/static/any/file", "/static/{path}"),
        ("/nothing/here", ""),
        ("/plain", "/plain"),
    ],
)
def test_the_route_is_the_full_mounted_template(path: str, template: str, home: Path) -> None:
    contexts: list[RequestContext] = []

    class Collect:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                contexts.append(scope["deia_hardening"])
            await self.app(scope, receive, send)

    async def leaf(request: Request) -> PlainTextResponse:
        return PlainTextResponse("leaf")

    bots = APIRouter(prefix="/bots")

    @bots.get("/{bot}")
    async def bot(tenant: int, bot: int) -> str:
        return "bot"

    tenants = APIRouter(prefix="/tenants/{tenant}")
    tenants.include_router(bots)
    app = FastAPI()
    app.include_router(tenants, prefix="/api")
    app.router.routes.append(Route("/plain", leaf))
    app.mount("/mounted/{x}", Starlette(routes=[Route("/leaf/{y}", leaf)]))
    app.mount("/static", number)
    app.add_middleware(Collect)
    harden(app, {"home": str(home)})
    TestClient(app).get(path)
    assert contexts[0].route == template


def test_current_finds_settings_and_says_what_is_off(home: Path) -> None:
    import attrs

    from deia_hardening import setting

    @attrs.frozen
    class Limits:
        max_bots: int = setting(3, "Most bots.", ge=1)

    from deia_audit import AuditLogger

    app = FastAPI()

    @app.get("/limit")
    async def limit(limits: Limits = Depends(inject(Limits))) -> int:
        with pytest.raises(NotEnabled, match="audit:"):
            current(AuditLogger)
        return limits.max_bots

    harden(app, {"home": str(home), "app": {"max_bots": 7}}, app_settings=Limits)
    with pytest.raises(NotStarted):
        current(Limits)
    assert TestClient(app).get("/limit").json() == 7
    assert current(Limits).max_bots == 7
    assert current(Limits, app=app).max_bots == 7


def test_an_app_that_nobody_uses_is_collected_with_its_plugins(home: Path) -> None:
    app: Any = harden(FastAPI(), {"home": str(home)})
    TestClient(app).get("/")
    core = find_core(app)
    assert core is not None
    assert core.lives
    gone = weakref.ref(core)
    del app, core
    for _ in range(500):  # the background thread may hold its finished start for a moment
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


def test_exchange_counts_what_the_client_saw(home: Path) -> None:
    contexts: list[RequestContext] = []
    ends: list[bool] = []

    async def stream(request: Request) -> StreamingResponse:
        context = current(RequestContext)
        contexts.append(context)
        context.exchange.on_end(lambda exchange: ends.append(exchange.complete))

        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"three"

        return StreamingResponse(chunks(), status_code=206)

    app = harden(Starlette(routes=[Route("/s", stream)]), {"home": str(home)})
    assert TestClient(app).get("/s").content == b"onethree"
    exchange = contexts[0].exchange
    assert (exchange.status, exchange.bytes_out, exchange.complete, ends) == (206, 8, True, [True])
    assert exchange.started <= exchange.first_byte <= exchange.ended


async def test_a_server_that_refuses_the_last_message_counts_as_a_client_that_left(home: Path) -> None:
    contexts: list[RequestContext] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        contexts.append(scope["deia_hardening"])
        await number(scope, receive, send)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("client disconnected")

    async def receive() -> Any:
        return {"type": "http.request"}

    hardened = harden(app, {"home": str(home)})
    with pytest.raises(OSError, match="client"):
        await hardened(http_scope(), receive, send)
    assert contexts[0].exchange.disconnected
    assert not contexts[0].exchange.complete


def test_settings_of_two_apps_on_one_home_must_agree(home: Path) -> None:
    one = harden(FastAPI(title="one"), {"home": str(home)})
    TestClient(one).get("/")
    two = harden(FastAPI(title="two"), {"home": str(home), "requests": {"lame_duck": "1s"}})
    assert TestClient(two).get("/").status_code == 503
    core = find_core(two)
    assert core is not None
    assert "one" in str(core._start_error)
    assert "two" in str(core._start_error)


@pytest.mark.parametrize("late", [None, ValueError("a background task's")])
async def test_a_layer_is_told_when_the_call_is_over_and_how_it_ended(home: Path, late: Exception | None) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context: RequestContext = scope["deia_hardening"]
        context.on_return(lambda: told.append((context.exchange.complete, context.error)))
        await number(scope, receive, send)
        told.append("background work")
        if late is not None:
            raise late

    recorder = await ASGIRecorder(harden(app, {"home": str(home)}), http_scope("/")).run()
    assert recorder.error is late
    assert told == ["background work", (True, late)]
