"""The control plane as a plugin: on without being named; this file only wires.

While a lifespan is open one worker of the home owns the control socket (and `control.listen`, where it is set); the
others try to take over now and then. Without a lifespan (a test client, a mounted app) nothing is bound and the app's
own port still answers the probes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from deia_hardening.control.api import Api
from deia_hardening.control.auth import Authentication
from deia_hardening.control.bootstrap import ensure_bootstrap
from deia_hardening.control.http import Request, Response, problem_response
from deia_hardening.control.listen import Listener, load_tls
from deia_hardening.control.onapp import OnApp
from deia_hardening.control.operations import TokenOperations
from deia_hardening.control.settings import ControlSettings
from deia_hardening.control.socket import HomeSocket, socket_of
from deia_hardening.errors import NotStarted
from deia_hardening.plugin import (
    ASGIApp,
    Authenticator,
    Health,
    HealthState,
    Host,
    Layer,
    Operation,
    Plugin,
    Position,
)
from deia_hardening.problem import Problem

if TYPE_CHECKING:
    from deia_hardening.metrics.otel import OtelExport

logger = logging.getLogger("deia_hardening.control")

_FIRST_LOOK: Final = 0.05
_SLOWEST_LOOK: Final = 30.0


class ControlPlugin(Plugin[ControlSettings]):
    """Serves operations and health."""

    name: ClassVar[str] = "control"
    Settings: ClassVar[type[Any]] = ControlSettings
    position: ClassVar[Position] = Position.CONTROL

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        settings = partial(host.settings, ControlSettings)
        self._settings = settings
        self._authentication = Authentication(host, settings)
        self._api = Api(host, self._authentication, settings)
        self._tokens = TokenOperations(host, self._authentication.table, settings)
        self._home: HomeSocket = socket_of(host.home)
        self._health = Health()
        self._listener: Listener | None = None
        self._bootstrapped = False
        self._otel: OtelExport | None = None

    async def check(self, settings: ControlSettings) -> None:
        if settings.otel and find_spec("opentelemetry") is None:
            raise ValueError("otel: opentelemetry is not installed: install deia-hardening[otel], or set it to false")
        if settings.tls_certificate:
            await self.host.blocking(load_tls, settings)

    def layers(self, settings: ControlSettings) -> Sequence[Layer]:
        def wrap(app: ASGIApp) -> ASGIApp:
            return OnApp(app, self.host, self._api, self._home, settings)

        return (Layer(Position.CONTROL, wrap, paths=(f"{settings.prefix}/",)),)

    def operations(self) -> Sequence[Operation]:
        return self._tokens.operations()

    def health(self) -> Health:
        return self._health

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        withdraw = self.host.services.provide(Authenticator, self._authentication)
        stop = asyncio.Event()
        # Never cancelled: a lock or a socket that a thread is just taking must be given back.
        task = asyncio.get_running_loop().create_task(self._serve(stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait([task])
            withdraw()
            if task.exception() is not None and not isinstance(task.exception(), NotStarted):  # the app is gone
                logger.error("the control plane ended by itself", exc_info=task.exception())

    async def _serve(self, stop: asyncio.Event) -> None:
        """Wait for a lifespan, then own the socket whenever nobody else does."""
        pause = _FIRST_LOOK
        while not self.host.server.open:
            if await self._pause(stop, pause):
                return
            pause = min(_SLOWEST_LOOK, pause * 2)
        leave = self._home.add(self._api.app_name, self._handle)
        listener = self._listener = Listener(self._handle, self._settings, self.host)
        try:
            while True:
                await self._own(listener)
                self._export()
                if await self._pause(stop, self._settings().takeover_interval):
                    return
        finally:
            if self._otel is not None:
                self._otel.on = False
            leave()
            await listener.close()
            await self._home.close(self.host.blocking)

    def _export(self) -> None:
        """Have the OpenTelemetry SDK know every metric that there is by now, where the settings say so."""
        wanted = self._settings().otel
        if self._otel is None:
            if not wanted:
                return
            from deia_hardening.metrics.otel import OtelExport

            self._otel = OtelExport(self.host.metrics, app=self._api.app_name)
        self._otel.on = wanted
        self._otel.refresh()

    async def _pause(self, stop: asyncio.Event, seconds: float) -> bool:
        """Sleep; true when it is time to stop."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(stop.wait()), loop.create_task(self.host.clock.sleep(seconds))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return stop.is_set()

    async def _own(self, listener: Listener) -> None:
        settings = self._settings()
        if not settings.socket and not settings.listen:
            return
        what = "answer on its socket"
        try:
            owned = await self._home.try_own(self.host.blocking, self._settings)
            if owned and settings.listen:
                what = f"listen at {settings.listen}"
                await listener.open(settings)
            if owned and settings.bootstrap_token and not self._bootstrapped:
                what = "make its first token"
                await ensure_bootstrap(self.host, self._authentication.table, settings)
                self._bootstrapped = True
        except Exception as error:
            if self._health.state is HealthState.OK:
                logger.error("the control plane can't %s and tries again: %s", what, error)
                self._health = Health(HealthState.DEGRADED, f"it can't {what}: {error}", self.host.clock.wall())
        else:
            self._health = Health(figures={"socket": str(self._home.path), "owner": owned})

    async def _handle(self, request: Request) -> Response:
        """A request from the socket or the own address, with its whole path."""
        prefix = self._settings().prefix
        if not request.path.startswith(f"{prefix}/"):
            return problem_response(Problem(404, f"everything here begins with {prefix}/"))
        return await self._api.handle(attrs.evolve(request, path=request.path[len(prefix) :]))
