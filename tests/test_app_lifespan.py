"""An app's own lifespan within the wrapped one, and a start that fails."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

from deia_hardening import harden
from deia_hardening.app import find_core
from deia_hardening.testing import ASGIRecorder, http_scope, request, running

from .test_app import number


def test_lifespan_state_and_request_state_are_the_apps_own(home: Path) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        core = find_core(app)
        assert core is not None
        assert core.ready
        yield {"from": "lifespan"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.__getattr__("from"))

    harden(app, {"home": str(home)})
    with TestClient(app) as client:
        assert client.get("/state").json() == "lifespan"
    core = find_core(app)
    assert core is not None
    assert not core.ready


async def test_an_app_that_ignores_lifespans_still_gets_its_plugins_stopped(home: Path) -> None:
    async def ignores(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await number(scope, receive, send)

    async with running(ignores, {"home": str(home)}) as service:
        assert (await service.get("/")).status == 200
        assert service.core.ready
    assert not service.core.ready


async def test_an_app_may_copy_its_scope(home: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        copied = copy.deepcopy(scope)
        assert copied["deia_hardening"] is scope["deia_hardening"]
        await number(copied, receive, send)

    assert (await request(harden(app, {"home": str(home), "audit": {}, "degradation": {}}), "GET", "/")).status == 200


@pytest.mark.parametrize("how", ["raises", "answers as to a request"])
async def test_an_app_without_a_lifespan_is_seen_to_have_none(home: Path, how: str) -> None:
    """Servers and test kits take an app that raises or sends before it has received anything for one without."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how == "raises":
            assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})

    seen: list[str] = []

    async def receive() -> Any:
        seen.append("receive")
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        seen.append(message["type"])
        raise RuntimeError("this is no answer to a lifespan")

    hardened = harden(app, {"home": str(home)})
    with pytest.raises(AssertionError if how == "raises" else RuntimeError):
        await hardened({"type": "lifespan"}, receive, send)
    assert seen == ([] if how == "raises" else ["http.response.start"])
    core = find_core(hardened)
    assert core is not None
    assert core.ready, "its plugins stay up until the process goes"


async def test_a_failing_lifespan_stops_the_plugins_and_reaches_the_server(home: Path) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = harden(FastAPI(lifespan=lifespan), {"home": str(home)})
    with pytest.raises(RuntimeError, match="no database"):
        async with running(app, {}):
            pass
    core = find_core(app)
    assert core is not None
    assert not core.ready


async def test_a_start_that_fails_is_told_by_503_and_tried_again(home: Path) -> None:
    app = harden(number, {"home": str(home), "requests": {"start_retry": "10ms"}})
    home.write_text("a file where the folder should be")
    first = await ASGIRecorder(app, http_scope()).run()
    assert first.status == 503
    assert first.headers["content-type"] == "application/problem+json"
    home.unlink()
    core = find_core(app)
    assert core is not None
    core._retry_at = 0.0
    assert (await ASGIRecorder(app, http_scope()).run()).status == 200


async def test_liveness_does_not_depend_on_the_start(home: Path) -> None:
    app = harden(number, {"home": str(home)})
    home.write_text("a file where the folder should be")
    assert (await request(app, "GET", "/deia/livez")).status == 200
    assert (await request(app, "GET", "/deia/readyz")).status == 503
