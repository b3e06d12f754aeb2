"""An upstream that is an ASGI app in this process: called on the caller's loop, nothing between.

Its lifespan is driven by itself, on the loop that enters `lifespan()` (a serving loop, through
`host.server`); a call that comes before opens nothing, since no lifespan may be bound to a loop that a
single request came from.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from deia_hardening.types import ASGIApp, Message, Receive, Scope, Send
from deia_hardening.upstream.base import NotSent, Readiness, UpstreamStartError
from deia_hardening.upstream.inner import ROLE_INNER, ROLE_VARIABLE

_import_lock = threading.RLock()


@contextlib.contextmanager
def inner_role() -> Iterator[None]:
    """Within it a module that calls `harden()` gets the inner role, as in a child process. One thread at a
    time."""
    with _import_lock:
        before = os.environ.get(ROLE_VARIABLE)
        os.environ[ROLE_VARIABLE] = ROLE_INNER
        try:
            yield
        finally:
            if before is None:
                del os.environ[ROLE_VARIABLE]
            else:
                os.environ[ROLE_VARIABLE] = before


def load_app(target: str) -> ASGIApp:
    """Import `module:attribute[.attribute]`, in the inner role. Raises StartError with the cause. Blocks."""
    module_name, _, path = target.partition(":")
    with inner_role():
        try:
            found: Any = importlib.import_module(module_name)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise UpstreamStartError(f"inproc:{target}", f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise UpstreamStartError(f"inproc:{target}", f"{path} is a {type(found).__name__}, not an ASGI app")
    return found  # type: ignore[no-any-return]


class InProcessUpstream:
    """An app called directly. See `Upstream` for the contract."""

    def __init__(self, name: str, app: ASGIApp | str) -> None:
        self._name = name
        self._target = app if isinstance(app, str) else ""
        self._app: ASGIApp | None = None if isinstance(app, str) else app
        self._state: dict[str, Any] | None = None
        self._stopped = False
        self._lifespan_error: BaseException | None = None
        self.in_flight = 0

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<Upstream {self._name}>"

    @property
    def app(self) -> ASGIApp:
        """The app, imported at first use. Raises StartError."""
        app = self._app
        if app is None:
            app = self._app = load_app(self._target)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if self._stopped:
            raise NotSent(self._name, "stopped", "it has been stopped")
        if app is None:
            try:
                app = self.app
            except UpstreamStartError as error:
                raise NotSent(self._name, "error", str(error)) from error
        if self._lifespan_error is not None:
            raise NotSent(self._name, "lifespan", f"its start-up failed: {self._lifespan_error}")
        if self._state is not None:
            scope = {**scope, "state": dict(self._state)}
        self.in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def start(self) -> None:
        self._stopped = False
        if self._app is None:
            from deia_hardening.runtime import runtime

            self._app = await runtime().blocking(load_app, self._target)

    async def ready(self) -> Readiness:
        if self._stopped:
            return Readiness(False, "stopped")
        if self._lifespan_error is not None:
            return Readiness(False, f"its lifespan's start-up failed: {self._lifespan_error}")
        if self._app is None:
            return Readiness(False, "not imported yet")
        return Readiness(True, "in this process")

    async def stop(self) -> None:
        self._stopped = True

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[dict[str, Any], None]:
        """Run the app's lifespan around the block, in a task of its own; yields its state.

        An app without a lifespan passes (it raises on that scope before it answers). Raises StartError when
        the start-up fails; calls are then `NotSent` until another attempt. Shutdown gets `STOP_SECONDS`
        even when the block is being cancelled; what it raises is raised here.
        """
        drive = _Lifespan(self.app)
        self._lifespan_error = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(drive.run)
                try:
                    await drive.started.wait()
                except BaseException:
                    drive.scope.cancel()
                    raise
                if drive.failed is None:
                    self._state = drive.state if drive.supported else None
                    try:
                        yield drive.state
                    finally:
                        with anyio.move_on_after(STOP_SECONDS, shield=True):
                            drive.stop.set()
                            await drive.ended.wait()
                        self._state = None
                        drive.scope.cancel()
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
            raise
        if drive.failed is not None:
            if not drive.was_up:
                self._lifespan_error = drive.failed
                raise UpstreamStartError(self._name, str(drive.failed)) from drive.failed
            raise drive.failed


STOP_SECONDS = 30.0
"""The longest an app's own shutdown may take before it is cancelled."""


class _Lifespan:
    """One run of an app's lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.started = anyio.Event()
        self.stop = anyio.Event()
        self.ended = anyio.Event()
        self.supported = False
        self.was_up = False
        self.failed: BaseException | None = None
        self.scope = anyio.CancelScope(shield=True)  # its shutdown runs even when the block is cancelled
        self._asked = False

    async def run(self) -> None:
        scope: Scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            with self.scope:
                await self.app(scope, self._receive, self._send)
        except Exception as error:
            if self.supported:
                self.failed = self.failed or error
            # before any answer: the app has no lifespan, which is its way to say so
        finally:
            self.started.set()
            self.ended.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self.stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self.supported = self.was_up = True
            self.started.set()
        elif kind == "lifespan.startup.failed":
            self.supported = True
            self.failed = RuntimeError(message.get("message") or "its start-up failed")
            self.started.set()
        elif kind == "lifespan.shutdown.failed":
            self.failed = RuntimeError(message.get("message") or "its shutdown failed")
            self.ended.set()
        elif kind == "lifespan.shutdown.complete":
            self.ended.set()
