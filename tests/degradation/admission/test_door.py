"""What is refused before it is served: streams beyond their number, what is late already, a client that left."""

from __future__ import annotations

import math

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse

from deia_degradation import DegradationManager
from deia_degradation.admission.streaming import _MOST, StreamRoutes
from deia_degradation.middleware import _jittered
from deia_hardening.testing import ASGIRecorder, http_scope, running


def streaming(end):
    app = FastAPI()

    @app.post("/chats/{chat}/turn")
    async def turn(chat: str, events: bool = True):
        async def lines():
            yield "data: 1\n\n"
            await end.wait()

        return StreamingResponse(lines(), media_type="text/event-stream") if events else JSONResponse({})

    @app.get("/plain")
    async def plain():
        return "ok"

    return app


async def bare(scope, receive, send):
    """Streams everywhere, and no router that could be asked."""
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while (await receive())["type"] != "http.disconnect":
            pass


async def test_streams_that_turn_out_to_be_some_are_bounded_and_nothing_else_suffers():
    end = anyio.Event()
    async with (
        running(streaming(end), {"home": ".deia", "degradation": {"admission": {"streams": 3}}}) as app,
        anyio.create_task_group() as group,
    ):
        manager = app.service(DegradationManager)
        for number in range(3):
            recorder = ASGIRecorder(
                app.app, http_scope("POST", f"/chats/{number}/turn"), {"type": "http.request"}, hang=True
            )
            group.start_soon(recorder.run)
        with anyio.fail_after(20):
            while manager.gate.streams < 3:
                await anyio.sleep(0.001)
        refused = await app.post("/chats/new/turn")
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await app.get("/plain")).status == 200
        assert manager.gate.streams == 3
        end.set()
        with anyio.fail_after(20):
            while manager.gate.streams:
                await anyio.sleep(0.001)
        assert (await app.call("POST", "/chats/new/turn", query_string=b"events=false")).status == 200


async def test_an_app_without_a_router_is_known_by_its_paths():
    async with (
        running(bare, {"home": ".deia", "degradation": {"admission": {"streams": 1}}}) as app,
        anyio.create_task_group() as group,
    ):
        manager = app.service(DegradationManager)
        group.start_soon(ASGIRecorder(app.app, http_scope("GET", "/a/1"), {"type": "http.request"}, hang=True).run)
        with anyio.fail_after(20):
            while not manager.gate.streams:
                await anyio.sleep(0.001)
        assert (await app.get("/a/1")).status == 503
        group.cancel_scope.cancel()


def test_what_is_remembered_of_streams_is_bounded():
    class Context:
        route = ""

        def __init__(self, number):
            self.scope = http_scope("GET", f"/{number}")

    routes = StreamRoutes()
    for number in range(2 * _MOST):
        routes.note(Context(number))
    assert not routes.match(http_scope("GET", "/0"))
    assert routes.match(http_scope("GET", f"/{2 * _MOST - 1}"))
    assert not routes.match(http_scope("POST", f"/{2 * _MOST - 1}"))
    assert len(routes._known) == _MOST


async def test_a_request_whose_deadline_has_passed_is_not_started():
    app = Starlette()
    asked = []
    app.add_route("/", lambda request: asked.append(request) or JSONResponse({}))
    trusting = {
        "home": ".deia",
        "degradation": {},
        "requests": {"trusted_proxies": ["127.0.0.1"], "client_address": "verified"},
    }
    async with running(app, trusting) as live:
        assert (await live.get("/", headers={"x-request-timeout": "0s"})).status == 503
        assert asked == []
        assert (await live.get("/", headers={"x-request-timeout": "10s"})).status == 200


async def test_those_who_are_refused_together_are_told_different_times():
    fixed = {"initial": 1, "minimum": 1, "maximum": 1, "wait": "10ms"}
    async with running(streaming(anyio.Event()), {"home": ".deia", "degradation": {"admission": fixed}}) as app:
        assert app.service(DegradationManager).gate.enter()
        told = []

        async def ask():
            recorder = ASGIRecorder(app.app, http_scope("GET", "/plain"), {"type": "http.request"}, hang=True)
            await recorder.run()
            assert recorder.status == 503
            told.append(int(recorder.headers["retry-after"]))

        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(ask)
        assert min(told) >= 1
        assert len(set(told)) >= 3


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 4.5, 60.0])
def test_nobody_is_told_to_come_back_before_it_is_likely_to_work(seconds):
    told = {_jittered(seconds) for _ in range(2000)}
    assert min(told) >= max(1.0, seconds)
    assert max(told) <= 2.0 * max(1.5, math.ceil(seconds))
    assert all(one == int(one) for one in told)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_the_queue(backend):
    piece = {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def main():
        fixed = {"initial": 1, "minimum": 1, "maximum": 1, "wait": "30s"}
        async with running(streaming(anyio.Event()), {"home": ".deia", "degradation": {"admission": fixed}}) as app:
            manager = app.service(DegradationManager)
            assert manager.gate.enter()
            left = ASGIRecorder(
                app.app, http_scope("POST", "/chats/1/turn"), piece, piece, piece, {"type": "http.disconnect"}
            )
            with anyio.fail_after(20):
                await left.run()
            assert left.sent == []
            assert (manager.gate.room.size, manager.gate.in_flight) == (0, 1)

    anyio.run(main, backend=backend)


async def test_no_more_of_a_waiting_body_is_read_than_the_bound():
    read = []

    async def receive():
        read.append(True)
        await anyio.lowlevel.checkpoint()
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def send(message):
        sent.append(message)

    sent = []
    fixed = {"initial": 1, "minimum": 1, "maximum": 1, "wait": "300ms"}
    async with running(streaming(anyio.Event()), {"home": ".deia", "degradation": {"admission": fixed}}) as app:
        assert app.service(DegradationManager).gate.enter()
        await app.app(http_scope("POST", "/chats/1/turn"), receive, send)
        assert sent[0]["status"] == 503
        assert len(read) <= 7
