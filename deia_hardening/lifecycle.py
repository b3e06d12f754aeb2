"""Start, reload and stop of one hardened app; the only writer of its `Revision`.

Everything here runs on the background loop, never on a serving loop. A start that fails stops what had started, in
reverse, and names the plugin. A reload that fails before its one assignment has changed nothing; a failure after
it goes to health. A stop gives each plugin its deadline and drains the journals last.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from deia_hardening import access, outer
from deia_hardening.chain import Placed, build, describe, order
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.context import SYSTEM, Actor
from deia_hardening.errors import HardeningError, StartError
from deia_hardening.events import Events, Started, Stopping
from deia_hardening.home import Home, home_at
from deia_hardening.host import AppHost, AppRevisions
from deia_hardening.life import Life, abandon, sentence
from deia_hardening.metrics.core import Metrics
from deia_hardening.peers import Identify, build_identify, claims
from deia_hardening.plan import Plan, Source
from deia_hardening.plugin import Health, HealthState, Plugin, Position, Revisions
from deia_hardening.reload import Reload
from deia_hardening.revision import Revision
from deia_hardening.routing import Routes, Templates
from deia_hardening.runtime import Completion, runtime
from deia_hardening.sections import RequestsSettings
from deia_hardening.server import Serving
from deia_hardening.services import FeatureSource, NoSplit, Services, VersionSplit
from deia_hardening.store.settings import StoreSettings
from deia_hardening.surface import Surface
from deia_hardening.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from deia_hardening.upstream.inner import Link

logger = logging.getLogger("deia_hardening")

ROLE_VARIABLE = "DEIA_ROLE"
"""Set in a version process, and while an in-process version is imported."""


async def _unattached(scope: Scope, receive: Receive, send: Send) -> None:
    raise HardeningError("the hardened app was called before its middleware stack was built")


class Core:
    """One hardened app: its settings, plugins, revision, and whether it runs.

    `ready` and `revision` are read by every request; both are written by single assignments.
    """

    ready: bool = False

    def __init__(self, source: Source, app: Any, name: str, link: Link | None = None) -> None:
        self.name = name
        self.link = link
        self.source = source
        self.inner: ASGIApp = _unattached
        self.events = Events(runtime())
        self.services = Services()
        self.metrics = Metrics()
        self.serving = Serving()
        self.clock = SYSTEM_CLOCK
        self.plan: Plan
        self.overrides: Mapping[str, Any]
        self.failures: dict[str, Health] = {}
        self.refused: Health | None = None
        self.lifespans = 0
        self.verdict = "unknown"
        self._template = Templates(app)
        self._lock = threading.Lock()
        self._starting: Completion[None] | None = None
        self._retry_at = 0.0
        self._retry_pause = 0.0
        self._start_error: BaseException | None = None
        self._told: BaseException | None = None
        self.leaving = False
        self.coming: Plan | None = None  # during a reload: what plugins that are entered for it run on
        self.lives: dict[str, Life] = {}
        self._family: Callable[[], None] | None = None
        self._reload_lock: asyncio.Lock | None = None
        self.plan, self.overrides, passed_over = source.first()
        if passed_over:
            detail = f"started with the last good settings; the present ones were refused: {passed_over}"
            self.refused = Health(HealthState.DEGRADED, detail, self.clock.wall())
        self.home: Home = home_at(self.plan.home, self.clock)
        self.plugins: dict[str, Plugin[Any]] = {}
        self.plugins = self.instances(self.plan, self.plugins)
        self.revision: Revision = self.build_revision(1, self.plan, self.plugins)
        self.identify: Identify | None = self._identify(self.plan)
        if link is not None:
            from deia_hardening.inner import InnerFeatures

            self.services.provide(FeatureSource, InnerFeatures(link))
        self.services.provide(VersionSplit, NoSplit())
        self.services.provide(Revisions, AppRevisions(weakref.ref(self)))
        self.services.provide(Surface, Surface(weakref.ref(self)))
        weakref.finalize(self, abandon, self.lives).atexit = False

    def reset(self) -> None:
        """As never started (after a fork)."""
        self.ready = self.offers = False
        access.live.discard(self)
        self.lifespans = 0
        self.serving.after_fork()
        self.events.after_fork()
        self._lock = threading.Lock()
        self._starting = None
        self._start_error = None
        self._retry_at = 0.0
        self.lives.clear()
        self._reload_lock = None
        self.home.forget(id(self))

    # -- building -------------------------------------------------------------------------------------------

    def _host(self, name: str) -> AppHost:
        return AppHost(name, weakref.ref(self))

    def instances(self, plan: Plan, running: Mapping[str, Plugin[Any]]) -> dict[str, Plugin[Any]]:
        found: dict[str, Plugin[Any]] = {}
        for name, kind in plan.classes.items():
            old = running.get(name)
            found[name] = old if type(old) is kind else kind(self._host(name))
        return found

    def _layers(self, plan: Plan, plugins: Mapping[str, Plugin[Any]]) -> tuple[Placed, ...]:
        return order((name, plugin.layers(plan.sections[name])) for name, plugin in plugins.items())

    def build_revision(self, number: int, plan: Plan, plugins: Mapping[str, Plugin[Any]]) -> Revision:
        placed = () if self.link is not None else self._layers(plan, plugins)
        requests: RequestsSettings = plan.settings[RequestsSettings]
        below = build(self.inner, [one for one in placed if one.layer.position > Position.CONTROL])
        return Revision(
            number=number,
            digest=plan.digest,
            sections=plan.sections,
            settings=plan.settings,
            chain=build(below, [one for one in placed if one.layer.position <= Position.CONTROL]),
            below_control=below,
            template=self._template,
            services=self.services,
            effects=Routes((text, True) for text in requests.effects),
            long=Routes((text, True) for text in requests.long),
            claims=partial(claims, limit=int(requests.claim_limit)),
            document=plan.document,
            failed=tuple(one.layer.failed for one in placed if one.layer.failed is not None),
            layers=describe(placed),
        )

    def attach(self, inner: ASGIApp) -> None:
        """The app's own stack was built (again): put the chain around it."""
        self.inner = inner
        self.revision = self.build_revision(self.revision.number, self.plan, self.plugins)

    @property
    def livez(self) -> str:
        """The path of the liveness probe, "" with the control plane off."""
        control = self.revision.sections.get("control")
        return "" if control is None else f"{control.prefix}/livez"

    def _identify(self, plan: Plan) -> Identify | None:
        if self.link is None:
            return build_identify(plan.settings[RequestsSettings])
        from deia_hardening.inner import identify_inner  # the upstreams behind it are an import that few need

        return identify_inner

    def adopt(
        self, new: Revision, plan: Plan, plugins: dict[str, Plugin[Any]], overrides: Mapping[str, Any]
    ) -> tuple[Revision, list[Plugin[Any]]]:
        """Make `new` the running revision; returns the old one and the plugins that it had and `new` has not."""
        old = self.revision
        removed = [plugin for name, plugin in self.plugins.items() if plugins.get(name) is not plugin]
        self.plugins, self.plan, self.overrides = plugins, plan, overrides
        self.revision = new  # the one assignment: from here on requests run on the new settings
        self.identify = self._identify(plan)
        self.refused = None
        self.home.update(id(self), new.digest)
        return old, removed

    @property
    def requests(self) -> RequestsSettings:
        found: RequestsSettings = self.revision.settings[RequestsSettings]
        return found

    def ordered(self, plugins: Iterable[Plugin[Any]]) -> list[Plugin[Any]]:
        return sorted(plugins, key=lambda plugin: (plugin.position, plugin.name))

    # -- start and stop -------------------------------------------------------------------------------------

    async def ensure(self) -> None:
        """Return once the app is started; called by requests on any loop. Raises what the start raised."""
        with self._lock:
            if self.ready:
                return
            completion = self._starting
            if completion is None:
                if self.leaving:
                    raise HardeningError("the service is going down and starts nothing any more")
                if self._start_error is not None and time.monotonic() < self._retry_at:
                    raise self._start_error
                completion = self._starting = runtime().submit(self._start)
        await completion.wait()

    def start_failure_is_new(self, error: BaseException) -> bool:
        """Whether this start error was not seen before, so that a log tells it once."""
        new = self._told is not error
        self._told = error
        return new

    def retry_after(self) -> float:
        """Seconds until a failed start is tried again."""
        return max(0.0, self._retry_at - time.monotonic())

    async def _start(self) -> None:
        requests = self.requests
        try:
            await runtime().blocking(self.home.make)
            try:
                self.home.join(id(self), self.name, self.revision.digest)
            except HardeningError as error:
                raise StartError("core", str(error)) from None
            self._family = outer.join(weakref.ref(self), self.home.path, self.link)
            self._offer()
            for plugin in self.ordered(self.plugins.values()):
                await self.enter(plugin, requests.start_timeout)
        except BaseException as error:
            await self._unwind(requests.stop_timeout)
            self._withdraw()
            self.home.leave(id(self))
            with self._lock:
                first = float(requests.start_retry)
                self._retry_pause = min(30.0, self._retry_pause * 2) if self._retry_pause else first
                self._retry_at = time.monotonic() + self._retry_pause
                self._start_error = error
                self._starting = None
            raise
        _remember(self)
        with self._lock:
            self._start_error = None
            self._retry_pause = 0.0
            self._starting = None
            self.ready = True
        self.events.emit(Started(actor=SYSTEM, verdict=self.verdict))

    def _offer(self) -> None:
        """`current(T)` finds this app, and a version's lifespan that a plugin opens has what it asks for."""
        self.offers = True
        access.live.add(self)

    def _withdraw(self) -> None:
        self.offers = False
        access.live.discard(self)

    async def enter(self, plugin: Plugin[Any], timeout: float) -> None:
        self.failures.pop(plugin.name, None)
        life = Life(plugin, self.failures, self.link is not None)
        await life.started(timeout)
        self.lives[plugin.name] = life

    async def _unwind(self, timeout: float) -> None:
        lives = [self.lives[p.name] for p in self.ordered(life.plugin for life in self.lives.values())]
        for life in reversed(lives):
            self.lives.pop(life.plugin.name, None)
            await life.stop(timeout)
        leave, self._family = self._family, None
        if leave is not None:
            leave()

    async def stop(self) -> None:
        """Stop the plugins in reverse order, then drain and close what the home holds. On the background loop."""
        with self._lock:
            if not self.ready:
                return
            self.ready = False
        self.events.emit(Stopping(actor=SYSTEM))
        await self._unwind(self.requests.stop_timeout)
        self._withdraw()
        if self.home.leave(id(self)):
            await runtime().blocking(self._close_home)

    def _close_home(self) -> None:
        for journal in self.home.journals():
            journal.drain(self.requests.stop_timeout)
        store = self.home._store
        if store is not None:
            store.sync.close()

    async def open_lifespan(self) -> None:
        """A lifespan opened: start, or join what is started."""
        with self._lock:
            self.lifespans += 1
            self.leaving = False
        try:
            await self.ensure()
        except BaseException:
            with self._lock:
                self.lifespans -= 1
            raise
        await runtime().submit(self.home.keep, self.revision.settings[StoreSettings])

    def leave_lifespan(self) -> bool:
        """A lifespan ended without a shutdown; true when it was the last one open."""
        with contextlib.suppress(RuntimeError):
            runtime().submit(self.home.release)
        with self._lock:
            self.lifespans -= 1
            return self.lifespans <= 0

    async def close_lifespan(self) -> None:
        """A lifespan closed: the last one stops the plugins."""
        if self.leave_lifespan():
            await runtime().submit(self.stop)

    # -- reload ---------------------------------------------------------------------------------------------

    async def propose(self, overrides: Mapping[str, Any] | None, source: str, actor: Actor, reason: str) -> Revision:
        """Read, check, build, switch. See `Revisions.propose`; runs on the background loop."""
        if self._reload_lock is None:
            self._reload_lock = asyncio.Lock()
        async with self._reload_lock:
            return await Reload(self, overrides, source, actor, reason).run()

    async def prepare(self, overrides: Mapping[str, Any] | None) -> tuple[Plan, dict[str, Plugin[Any]]]:
        """Read the sources and have every plugin check the result; no effect. On the background loop."""
        return await Reload(self, overrides, "check", SYSTEM, "").prepare()

    # -- health ---------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Health]:
        """Each plugin's health, and the core's own under `core`."""
        found: dict[str, Health] = {}
        if self._start_error is not None:
            found["core"] = Health(HealthState.FAILED, sentence(self._start_error))
        elif self.refused is not None:
            found["core"] = self.refused
        else:
            found["core"] = Health(figures={"revision": self.revision.number})
        for name, plugin in self.plugins.items():
            failure = self.failures.get(name)
            if failure is not None:
                found[name] = failure
                continue
            try:
                found[name] = plugin.health()
            except Exception as error:
                found[name] = Health(HealthState.DEGRADED, f"its health could not be read: {error!r}")
        return found


_started: weakref.WeakSet[Core] = weakref.WeakSet()
_at_exit = False


def _after_fork() -> None:
    """The background loop is not in the child: every app there is as never started."""
    for core in list(_started):
        core.reset()


def _remember(core: Core) -> None:
    """Stop what runs when the interpreter ends: a courtesy, servers rarely reach it."""
    global _at_exit
    _started.add(core)
    if not _at_exit:
        _at_exit = True
        atexit.register(_exit)


def _exit() -> None:
    deadline = time.monotonic() + 5
    stops: list[Callable[[float], Any]] = []
    for core in list(_started):
        if core.ready:
            with contextlib.suppress(RuntimeError):
                stops.append(runtime().submit(core.stop).result)
    for stop in stops:
        with contextlib.suppress(Exception):
            stop(max(0.1, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
