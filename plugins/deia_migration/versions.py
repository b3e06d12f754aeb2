"""Versions coming and going: opened, started, watched, stopped; each with a lifespan of its own.

A version that can't start leaves everything as it was. What it holds (a child process, connections, its lifespan on the
serving loop) is given back when it is stopped, also when its start was only half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from deia_hardening.errors import HardeningError, NotStarted
from deia_hardening.plugin import ASGIApp, Completion, Host, Latch
from deia_hardening.settings import Seconds
from deia_hardening.upstream import ProcessSettings, Readiness, Upstream, UpstreamSettings, open_upstream
from deia_migration.settings import VersionSettings
from deia_migration.traffic import Version, number_of

APP_NAME = "app"
"""The wrapped app's name among the versions."""

logger = logging.getLogger("deia_migration")

MOST_CONNECTIONS = 65_536
"""Of each worker to a version: it is the service itself, which has no bound of streams or of time in this process."""

STOP_SECONDS = 35.0
"""The longest a version's own shutdown is waited for; its lifespan is cancelled before."""


class VersionHost:
    """One version in this process. All methods are for the background loop."""

    def __init__(
        self,
        host: Host,
        name: str,
        target: str,
        digest: str = "",
        settings: VersionSettings | None = None,
        environment: Sequence[str] = (),
    ) -> None:
        """Opens nothing. Raises SettingsError for a target that can't be meant."""
        self._host = host
        self.settings = settings
        self.upstream: Upstream = open_upstream(
            target,
            settings=_limits(settings, environment),
            home=host.home,
            name=f"version {name}@{digest[:12]}" if digest else f"version {name}",
            repeatable=self._repeatable,
        )
        self.version = Version(name, number_of(name, target, digest), self.upstream, target=target, digest=digest)
        self.died = ""
        self._held: Completion[None] | None = None
        self._stop = Latch()

    def _repeatable(self, scope: Any) -> bool:
        if scope.get("method") not in ("GET", "HEAD", "OPTIONS"):
            return False
        context = scope.get("deia_hardening")
        return context is None or not context.revision.effects.match(scope, False)

    async def start(self, on_death: Callable[[str], None]) -> None:
        """Start it and wait until it answers. `on_death` is called when it ends by itself. Raises HardeningError."""
        deaths = getattr(self.upstream, "on_death", None)
        if deaths is not None:

            def died(reason: Any) -> None:
                if not self._stop.is_set():
                    self.died = str(reason) or "it ended"
                    self.version.ready = False
                    self.version.lost = True
                    on_death(self.died)

            deaths(died)
        await self.upstream.start()
        if self.version.target.startswith("inproc:") or not self.version.target:
            await self._open_lifespan()

    async def _open_lifespan(self) -> None:
        started: Completion[None] = Completion()

        async def hold() -> None:
            try:
                async with self.upstream.lifespan():
                    started.set_result(None)
                    await self._stop.wait()
            except BaseException as error:
                if not started.done():
                    started.set_error(error)
                raise

        try:
            self._held = self._host.server.start(hold)
        except NotStarted:
            return  # served without a lifespan: the app's own did not run either
        await started

    async def ready(self) -> Readiness:
        """Ask whether it answers now; never raises."""
        return await self.upstream.ready()

    @property
    def address(self) -> str:
        """Where anybody can reach it: an URL, `unix:PATH`, or "" for one that only this process may ask."""
        target = self.version.target
        return "" if target.partition(":")[0] in ("inproc", "process", "") else target

    async def stop(self, *, leaving: bool = False) -> None:
        """End it; `leaving`: this process goes, the others of the home go on with it. Raises nothing; it is logged."""
        self.version.ready = False
        self.version.lost = True
        self._stop.set()
        if self._held is not None:
            held, self._held = self._held, None
            try:
                await asyncio.wait_for(held.wait(), STOP_SECONDS)
            except TimeoutError:
                logger.warning("version %s did not shut down within %g s", self.version.label, STOP_SECONDS)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
            except Exception as error:
                logger.warning("version %s failed while it shut down: %s", self.version.label, error)
        with contextlib.suppress(HardeningError, OSError):
            leave = getattr(self.upstream, "leave", None) if leaving else None
            await (leave or self.upstream.stop)()


class AppHosted(VersionHost):
    """The wrapped app as a candidate: to go back to it gradually after another version was promoted.

    It is up already and never stopped here.
    """

    def __init__(self, host: Host, version: Version, app: ASGIApp) -> None:
        super().__init__(host, APP_NAME, "inproc:deia_migration.versions:APP_NAME")
        self.upstream = open_upstream(app, name="the app itself")
        self.version = version

    async def start(self, on_death: Callable[[str], None]) -> None:
        """It is up."""

    async def ready(self) -> Readiness:
        return Readiness(True, "the app itself")

    async def stop(self, *, leaving: bool = False) -> None:
        """It goes on serving."""


def _limits(settings: VersionSettings | None, environment: Sequence[str]) -> UpstreamSettings:
    given = settings if settings is not None else VersionSettings(target="process:")
    process = ProcessSettings(interpreter=given.interpreter, folder=given.folder, variables=dict(given.variables))
    own = [name for name in os.environ if not name.startswith("DEIA")]  # the front's settings and secrets stay here
    named = (name for pattern in environment for name in fnmatch.filter(own, pattern))
    process = attrs.evolve(process, environment=(*process.environment, *named))
    return UpstreamSettings(
        first_byte_timeout=Seconds("0s"),
        max_connections=MOST_CONNECTIONS,
        probe_path=given.probe_path,
        keep_host=given.keep_host,
        process=process,
    )
