"""MAINTENANCE, and routes that only some modes serve: who is refused, with what, and who passes."""

from __future__ import annotations

import json

from degradation_service import hello, http_only, settings

from deia_degradation import DegradationManager
from deia_hardening.context import Actor
from deia_hardening.testing import running

ANN = Actor("user", "ann", "token")


async def test_maintenance_answers_503_with_its_end_and_lets_the_allowed_pass():
    allow = {"maintenance": {"allow": ["GET /status"], "message": "Back soon."}}
    async with running(hello, settings(**allow)) as app:
        manager = app.service(DegradationManager)
        await manager.pin("MAINTENANCE", seconds=600, actor=ANN, reason="new disks")
        refused = await app.get("/x")
        assert refused.status == 503
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        problem = json.loads(refused.body)
        assert problem["mode"] == "MAINTENANCE"
        assert problem["detail"] == "Back soon."
        assert problem["reason"] == "new disks"
        assert problem["ends"].startswith("20")
        assert (await app.get("/status")).status == 200


async def test_maintenance_leaves_unknown_routes_and_methods_their_404_and_405():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    inner = [Route("/known", lambda request: PlainTextResponse("ok"), methods=["POST"])]
    app = Starlette(routes=[Route("/here", lambda request: PlainTextResponse("ok")), Mount("/sub", routes=inner)])
    async with running(app, settings()) as live:
        await live.service(DegradationManager).pin("MAINTENANCE", actor=ANN)
        statuses = {
            (method, path): (await live.call(method, path)).status
            for method, path in [
                ("GET", "/here"), ("GET", "/nowhere"), ("POST", "/here"), ("POST", "/sub/known"), ("GET", "/sub/x"),
            ]
        }  # fmt: skip
    assert statuses == {
        ("GET", "/here"): 503,
        ("GET", "/nowhere"): 404,
        ("POST", "/here"): 405,
        ("POST", "/sub/known"): 503,
        ("GET", "/sub/x"): 404,
    }


async def test_a_route_is_served_only_in_its_modes():
    rules = {"routes": [{"route": "POST /scale", "modes": ["FULL"]}]}
    async with running(hello, settings(**rules)) as app:
        assert (await app.post("/scale")).status == 200
        await app.service(DegradationManager).pin("DEGRADED", actor=ANN)
        refused = await app.post("/scale")
        assert refused.status == 503
        assert json.loads(refused.body)["mode"] == "DEGRADED"
        assert (await app.get("/other")).status == 200


async def test_an_allowed_actor_passes_maintenance_and_a_claimed_one_does_not(monkeypatch):
    import sys
    import types

    module = types.ModuleType("degradation_actors")
    module.who = lambda scope: Actor("user", dict(scope["headers"])[b"x-me"].decode(), "token")
    module.claimed = lambda scope: Actor("user", dict(scope["headers"])[b"x-me"].decode(), "")
    monkeypatch.setitem(sys.modules, "degradation_actors", module)
    for resolver, statuses in (("who", [200, 503]), ("claimed", [503, 503])):
        more = {"requests": {"actor": [f"degradation_actors:{resolver}"]}}

        @http_only
        async def app(scope, receive, send):
            await hello(scope, receive, send)

        async with running(app, {**settings(maintenance={"allow_actors": ["ann"]}), **more}) as live:
            await live.service(DegradationManager).pin("MAINTENANCE")
            found = [(await live.get("/", headers={"x-me": me})).status for me in ("ann", "bob")]
            assert found == statuses


async def test_health_tells_of_streams_that_outlast_the_drain():
    async with running(hello, settings(maintenance={"drain": "0s"})) as app:
        manager = app.service(DegradationManager)
        assert manager.gate.enter_stream()
        await manager.pin("MAINTENANCE", reason="x")
        assert "1 streams are open" in app.core.health()["degradation"].detail
        manager.gate.leave_stream()
