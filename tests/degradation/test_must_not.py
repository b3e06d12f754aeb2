"""What must not be: each of these breaks services that meant well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from deia_degradation import DegradationManager
from deia_hardening.testing import ASGIRecorder, http_scope, running

SETTINGS = {"home": ".deia", "degradation": {"disable_features": ["thumbnails"]}}


def service():
    async def fails(request):
        raise RuntimeError("as expected")

    async def teapot(request):
        raise HTTPException(418, "short and stout", {"x-own": "1"})

    async def busy(request):
        return JSONResponse({"own": "busy"}, 503, {"retry-after": "7"})

    async def enough(request):
        return PlainTextResponse("slow down", 429)

    async def lines(request):
        return StreamingResponse((f"data: {number}\n\n" for number in range(3)), media_type="text/event-stream")

    routes = [
        Route("/ok", lambda request: PlainTextResponse("ok")), Route("/fails", fails), Route("/teapot", teapot),
        Route("/busy", busy), Route("/enough", enough), Route("/lines", lines),
        Mount("/sub", routes=[Route("/post", lambda request: PlainTextResponse("posted"), methods=["POST"])]),
    ]  # fmt: skip
    return Starlette(debug=True, routes=routes)


ASKED = [
    ("GET", "/ok"), ("HEAD", "/ok"), ("GET", "/fails"), ("GET", "/teapot"), ("GET", "/busy"), ("GET", "/enough"),
    ("GET", "/lines"), ("GET", "/nowhere"), ("POST", "/ok"), ("POST", "/sub/post"), ("GET", "/sub/post"),
    ("GET", "/sub/nowhere"), ("GET", "/ok/"), ("OPTIONS", "/ok"),
]  # fmt: skip


async def answers(app):
    found = {}
    for method, path in ASKED:
        recorder = await ASGIRecorder(app, http_scope(method, path), {"type": "http.request"}, hang=True).run()
        sent = [
            {**message, "body": b"a page of debugging"} if path == "/fails" else message for message in recorder.sent
        ]
        for message in sent:  # the page holds the traceback, so its length differs by our frames
            if path == "/fails" and "headers" in message:
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"content-length"]
        found[method, path] = (sent, type(recorder.error))
    return found


@pytest.mark.parametrize("mode", ["FULL", "DEGRADED"])
async def test_the_apps_own_answers_are_never_changed(mode):
    bare = await answers(service())
    async with running(service(), SETTINGS) as live:
        await live.service(DegradationManager).pin(mode)
        assert await answers(live.app) == bare


@pytest.mark.parametrize("trouble", ["maintenance", "full"])
async def test_liveness_never_fails(trouble):
    fixed = {"initial": 1, "minimum": 1, "maximum": 1, "wait": "50ms"}
    async with running(service(), {**SETTINGS, "degradation": {"admission": fixed}, "control": {}}) as live:
        manager = live.service(DegradationManager)
        if trouble == "maintenance":
            await manager.pin("MAINTENANCE")
        else:
            assert manager.gate.enter()
        refused = ASGIRecorder(live.app, http_scope("GET", "/enough"), {"type": "http.request"}, hang=True)
        assert (await refused.run()).status == 503
        assert (await live.get("/deia/livez")).status == 200


async def test_no_request_sets_a_timer_of_its_own(monkeypatch):
    bots = [{"id": name, "upstream": "inproc:degradation_bot:app"} for name in "ab"]
    pools = {"p": {"bots": bots, "routes": ["GET /bot"], "first_within": "5s"}}
    async with running(service(), {**SETTINGS, "degradation": {"pools": pools}}) as live:
        for member in live.service(DegradationManager).pool("p").members():
            member.target = service()
        for path in ("/ok", "/bot"):
            await live.get(path)
        loop, set_here = asyncio.get_running_loop(), []
        at, later = loop.call_at, loop.call_later
        monkeypatch.setattr(loop, "call_at", lambda *args, **more: set_here.append(args) or at(*args, **more))
        monkeypatch.setattr(loop, "call_later", lambda *args, **more: set_here.append(args) or later(*args, **more))
        for path in ("/ok", "/bot", "/lines"):
            for _ in range(20):
                await live.get(path)
        assert set_here == []


async def test_no_request_writes_to_the_disk():
    async with running(service(), SETTINGS) as live:
        await live.get("/ok")
        before = written(live.home)
        for _ in range(200):
            await live.get("/ok")
            await live.get("/fails")
        assert written(live.home) == before


def written(home: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in sorted(Path(home).rglob("*.jsonl*"))}
