"""Behind a root path (`uvicorn --root-path`, a mount) the routes in the settings still mean the app's own routes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from deia_degradation import Bot, DegradationManager
from deia_hardening import harden
from deia_hardening.testing import running
from deia_hardening.testing.asgi import request

SECRET = "telegram-secret"
SETTINGS: dict[str, Any] = {
    "requests": {"effects": ["GET /mailbox"]},
    "audit": {"require_reason": ["DELETE /bots/{bot_id}"]},
    "degradation": {
        "maintenance": {"allow": ["GET /bots"]},
        "pools": {"helpers": {"bots": [], "routes": ["/bots/{bot_id}/task"]}},
    },
    "recovery": {"reserve": "0", "inbox": [{"path": "/hook", "preset": "telegram", "secret": SECRET}]},
}


def service() -> tuple[Starlette, list[str]]:
    delivered: list[str] = []

    async def bots(request: Request) -> Response:
        return JSONResponse(["one"])

    async def mailbox(request: Request) -> Response:
        return JSONResponse(request.scope["deia_hardening"].revision.effects.match(request.scope, False))

    async def hook(request: Request) -> Response:
        delivered.append((await request.body()).decode())
        return PlainTextResponse("")

    routes = [
        Route("/bots", bots),
        Route("/bots/{bot_id}", bots, methods=["DELETE"]),
        Route("/mailbox", mailbox),
        Route("/hook", hook, methods=["POST"]),
    ]
    return Starlette(routes=routes), delivered


async def helper(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("helped")(scope, receive, send)


def settings(tmp_path: Path) -> dict[str, Any]:
    return {"home": str(tmp_path / ".deia"), **SETTINGS}


@pytest.mark.parametrize("root", ["", "/pre", "/pre/fix"])
async def test_every_route_of_the_settings_is_the_apps_own(root: str, tmp_path: Path) -> None:
    app, delivered = service()
    async with running(harden(app, settings(tmp_path)), {}) as live:

        async def ask(method: str, path: str, body: bytes = b"", **more: Any) -> Any:
            return await live.call(method, root + path, body, root_path=root, **more)

        assert (await ask("GET", "/bots")).status == 200
        assert (await ask("GET", "/mailbox")).body == b"true"
        assert (await ask("HEAD", "/mailbox")).status == 200
        assert (await ask("GET", "/deia/livez")).status == 200
        assert (await ask("GET", "/api/audit/logs")).status == 401
        refused = await ask("DELETE", "/bots/one")
        assert (refused.status, b"Deia-Reason" in refused.body) == (400, True)
        degradation = live.service(DegradationManager)
        degradation.pool("helpers").add(Bot("one", helper))
        assert (await ask("POST", "/bots/one/task")).body == b"helped"
        update = json.dumps({"update_id": 7}).encode()
        proven = {"x-telegram-bot-api-secret-token": SECRET}
        assert (await ask("POST", "/hook", update)).status == 401
        assert (await ask("POST", "/hook", update, headers=proven)).status == 200
        for _ in range(1000):
            if delivered:
                break
            await asyncio.sleep(0.01)
        assert delivered == [update.decode()]


async def test_a_hardened_app_below_a_mount_is_asked_by_its_own_paths(tmp_path: Path) -> None:
    inner, _ = service()
    hardened = harden(inner, settings(tmp_path))
    async with running(hardened, {}):
        outer = Starlette(routes=[Mount("/sub", hardened)])
        assert (await request(outer, "GET", "/sub/mailbox")).body == b"true"
        assert (await request(outer, "GET", "/sub/api/audit/logs")).status == 401
        assert (await request(outer, "DELETE", "/sub/bots/one")).status == 400
