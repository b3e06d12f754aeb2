"""Two versions of one small service, and a hardened app that can be migrated between them."""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening import harden
from deia_hardening.runtime import runtime
from deia_hardening.testing import Running, running
from deia_hardening.types import ASGIApp, Receive, Scope, Send

Behaviour = Callable[[Scope, Receive, Send], Awaitable[None]]


class Service:
    """A version: answers with its name, counts, and misbehaves when told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.lifespans: list[str] = []
        self.behaviour: Behaviour | None = None
        self.startup_error = ""
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.requests += 1
        if self.behaviour is not None:
            await self.behaviour(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain"), *self.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.name.encode()})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self.startup_error:
                    await send({"type": "lifespan.startup.failed", "message": self.startup_error})
                    return
                self.lifespans.append("up")
                await send({"type": "lifespan.startup.complete"})
            else:
                self.lifespans.append("down")
                await send({"type": "lifespan.shutdown.complete"})
                return


class Pair:
    """The old and the new version, and how to run them hardened."""

    def __init__(self, folder: Path) -> None:
        self.old = Service("old")
        self.new = Service("new")
        self.folder = folder
        module = types.ModuleType("deia_test_versions")
        module.new = self.new  # type: ignore[attr-defined]
        sys.modules["deia_test_versions"] = module

    def settings(self, **migration: Any) -> dict[str, Any]:
        section = {
            "versions": {"v2": {"target": "inproc:deia_test_versions:new"}},
            "key": ["header:x-user"],
            "tick": "10ms",
            **migration,
        }
        return {"home": str(self.folder / ".deia"), "migration": section}

    @asynccontextmanager
    async def up(self, app: ASGIApp | None = None, **migration: Any) -> AsyncIterator[Running]:
        # Reading the settings blocks, so it is done where a service does it: off the loop.
        hardened = await runtime().blocking(harden, app or self.old, self.settings(**migration))
        async with running(hardened, {}) as live:
            yield live


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    yield Pair(tmp_path)
    sys.modules.pop("deia_test_versions", None)


async def until(condition: Callable[[], Any], what: str = "", turns: int = 3000) -> None:
    """Let the loops turn until something is true; fails by turns, not by the clock."""
    for _ in range(turns):
        if condition():
            return
        await anyio.sleep(0.005)
    raise AssertionError(f"it never came: {what or condition}")


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Awaitable[None]]:
    return until
