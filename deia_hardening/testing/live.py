"""`running(app, settings)`: a hardened app with its lifespan open, in a home of its own, for the time of a test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from deia_hardening.app import find_core, harden
from deia_hardening.errors import HardeningError
from deia_hardening.lifecycle import Core
from deia_hardening.testing.asgi import ASGIRecorder, http_scope, request
from deia_hardening.types import ASGIApp, Message


class Running:
    """A hardened app that is up. `await running.get("/x")` calls it; `running.core` is its core."""

    def __init__(self, app: ASGIApp, core: Core, home: Path) -> None:
        self.app = app
        self.core = core
        self.home = home
        self.state: dict[str, Any] = {}

    async def call(self, method: str, path: str, body: bytes = b"", **scope: Any) -> ASGIRecorder:
        """One HTTP request; what it answered is in the returned recorder."""
        return await request(self.app, method, path, body, state=dict(self.state), **scope)

    async def get(self, path: str, **scope: Any) -> ASGIRecorder:
        return await self.call("GET", path, **scope)

    async def post(self, path: str, body: bytes = b"", **scope: Any) -> ASGIRecorder:
        return await self.call("POST", path, body, **scope)

    def service(self, kind: type[Any]) -> Any:
        """A service of this app, as `current(kind)` gives it."""
        from deia_hardening.access import current

        return current(kind, app=self.app)


@asynccontextmanager
async def running(
    app: ASGIApp, settings: Mapping[str, Any] | str | Path, *, app_settings: type | None = None
) -> AsyncIterator[Running]:
    """Harden `app` (unless it is) and hold its lifespan open. Works on asyncio and trio.

    With a mapping that names no `home`, one is made and removed afterwards. Raises what the start raised.
    """
    made: Path | None = None
    if find_core(app) is None:
        if isinstance(settings, Mapping) and "home" not in settings:
            made = Path(tempfile.mkdtemp(prefix="deia-test-"))
            settings = {**settings, "home": str(made / ".deia")}
        app = harden(app, settings, app_settings=app_settings)
    core = find_core(app)
    if core is None:
        raise HardeningError("running(): DEIA__ENABLED turns the package off")
    up, down, ended = anyio.Event(), anyio.Event(), anyio.Event()
    answers: list[Message] = []
    inbox = [{"type": "lifespan.startup"}]
    running_app = Running(app, core, core.home.path)

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        await down.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Message) -> None:
        answers.append(message)
        up.set()

    failure: list[BaseException] = []

    async def live() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": running_app.state}, receive, send)
        except Exception as error:
            failure.append(error)
        up.set()
        ended.set()

    raised: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(live)
            await up.wait()
            if answers and answers[0]["type"] == "lifespan.startup.complete":
                try:
                    yield running_app
                except BaseException as error:
                    raised = error
                with anyio.CancelScope(shield=True):
                    down.set()
                    await ended.wait()
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    if raised is not None:
        raise raised
    if failure:
        raise failure[0]
    if not answers or answers[0]["type"] != "lifespan.startup.complete":
        raise HardeningError(f"the app did not start: {answers[0].get('message', '') if answers else 'no answer'}")


__all__ = ["Running", "http_scope", "running"]
