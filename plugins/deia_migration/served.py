"""A version at an address of its own while the team's tests run: a Unix socket in the home's run folder.

A version's process takes requests only from its front, and a version in this process has no address at all; here both
are asked as the front asks them. Only this user can reach the socket, and it is gone when the tests are over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from deia_hardening.errors import NotStarted
from deia_hardening.plugin import ASGIApp, Completion, Host, Latch, Receive, Scope, Send
from deia_hardening.upstream.rundir import RunDir

_CLOSING = 10.0
"""Seconds for the server to end when the tests are over."""
_LAST_ANSWERS = 3
"""Seconds of these for answers that are under way."""
_LOOK = 0.01
"""Seconds between two looks whether the server is up, which it does not tell."""


@contextlib.asynccontextmanager
async def served(host: Host, app: ASGIApp, *, here: bool) -> AsyncIterator[str]:
    """Serve `app` as `unix:PATH` while the block runs; `here`: on the serving loop, else on the present one.

    Raises RuntimeError or OSError where that can't be.
    """
    path = await host.blocking(_place, host.home)
    up: Completion[None] = Completion()
    over = Latch()
    serving: Any = None
    if here:
        with contextlib.suppress(NotStarted):
            serving = host.server.start(_serve, app, path, up, over).wait()
    serving = asyncio.ensure_future(serving if serving is not None else _serve(app, path, up, over))
    try:
        await up
        yield f"unix:{path}"
    finally:
        over.set()
        await asyncio.wait({serving}, timeout=_CLOSING)
        with contextlib.suppress(asyncio.CancelledError, Exception):
            serving.cancel()
            await serving
        await host.blocking(path.unlink, True)


def _from_here(app: ASGIApp) -> ASGIApp:
    """The app asked as by a client of this machine, which a Unix socket does not name."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "client": ("127.0.0.1", 0), "server": ("localhost", 80)}, receive, send)

    return asked


def _place(home: Path) -> Path:
    folder = RunDir(home)
    folder.prepare()
    path = folder.socket_path("migration-tested")
    path.unlink(missing_ok=True)
    return path


async def _serve(app: ASGIApp, path: Path, up: Completion[None], over: Latch) -> None:
    try:
        asyncio.get_running_loop()
        import uvicorn

        class Server(uvicorn.Server):
            """Signals stay whose they are."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        config = uvicorn.Config(
            _from_here(app), uds=str(path), lifespan="off", access_log=False, log_config=None, log_level="warning",
            proxy_headers=False, server_header=False, date_header=False, timeout_graceful_shutdown=_LAST_ANSWERS,
        )  # fmt: skip
        server = Server(config)
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(_LOOK)
    except ImportError:
        up.set_error(RuntimeError("the team's own tests need uvicorn: install deia-hardening[server]"))
        return
    except RuntimeError:
        up.set_error(RuntimeError("the team's own tests of a version in this process need a server on asyncio"))
        return
    if not server.started:
        up.set_error(RuntimeError(f"no socket could be opened at {path}"))
        return
    up.set_result(None)
    try:
        await over.wait()
    finally:
        server.should_exit = True
        await asyncio.shield(serving)
