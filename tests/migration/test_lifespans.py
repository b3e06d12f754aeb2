"""A version in the same process has in its lifespan what an app has in its own: settings, services, durable state."""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_hardening import current, harden, setting
from deia_hardening.runtime import runtime
from deia_hardening.testing import running
from deia_migration import MigrationManager
from deia_recovery import Registry


@attrs.frozen
class Limits:
    """The app's own settings."""

    bots: int = setting(3, "Most bots.", ge=1)


class Bots:
    """A version that counts its starts and stops in the durable registry, as its settings allow."""

    def __init__(self) -> None:
        self.known: Registry[int] = Registry("known", int)
        self.seen: list[str] = []
        self.app = Starlette(routes=[Route("/", self._home)], lifespan=self._lifespan)

    async def _home(self, request: Any) -> PlainTextResponse:
        return PlainTextResponse("new")

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self._count("starts")
        yield
        await self._count("stops")

    async def _count(self, what: str) -> None:
        number = await self.known.update(what, lambda before: (before or 0) + 1)
        self.seen.append(f"{what} {number} of {current(Limits).bots}")


@pytest.fixture
def bots() -> Iterator[Bots]:
    made = Bots()
    sys.modules["deia_test_bots"] = module = types.ModuleType("deia_test_bots")
    module.app = made.app  # type: ignore[attr-defined]
    yield made
    del sys.modules["deia_test_bots"]


@pytest.mark.parametrize("end", ["under way", "promoted"])
async def test_a_version_that_is_there_at_the_start_finds_the_services_when_it_starts_and_stops(
    bots: Bots, tmp_path: Path, until: Any, end: str
) -> None:
    settings = {
        "home": str(tmp_path / ".deia"),
        "recovery": {},
        "migration": {
            "versions": {"v2": {"target": "inproc:deia_test_bots:app"}},
            "plan": {"steps": [{"weight": "100%", "pause": "1h"}]},
            "tick": "10ms",
        },
        "app": {"bots": 7},
    }

    def hardened() -> Starlette:
        app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("old"))])
        return harden(app, settings, app_settings=Limits)

    async with running(await runtime().blocking(hardened), {}) as service:
        await current(MigrationManager).start("v2")
        await until(lambda: current(MigrationManager).status().weight == 1)
        assert bots.seen == ["starts 1 of 7"]
        if end == "promoted":
            await current(MigrationManager).promote(full=True)
            await until(lambda: current(MigrationManager).status().phase == "done")
        assert (await service.get("/")).body == b"new"
    assert bots.seen == ["starts 1 of 7", "stops 1 of 7"]

    async with running(await runtime().blocking(hardened), {}) as service:
        while (await service.get("/")).body != b"new":
            await anyio.sleep(0.01)
        assert bots.seen[2:] == ["starts 2 of 7"]
    assert bots.seen[2:] == ["starts 2 of 7", "stops 2 of 7"]
