"""The audit plugin: wires layers, journal, evidence and operations together, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, TypeVar

from deia_audit import atrest, newlog, untold
from deia_audit.endpoint import LogsEndpoint
from deia_audit.events import AuditWeakened
from deia_audit.guarantees import IntentMiddleware
from deia_audit.inner import SendingLogger, VersionRecords
from deia_audit.keeper import Keeper
from deia_audit.layout import Layout
from deia_audit.middleware import AuditMiddleware
from deia_audit.notes import VerifierKey
from deia_audit.operations import operations
from deia_audit.policy import Level, Policy, weakened
from deia_audit.query.search import Search
from deia_audit.service import AuditLogger
from deia_audit.settings import AuditSettings
from deia_audit.witness_client import parse_witnesses
from deia_hardening.errors import NotEnabled, NotStarted
from deia_hardening.journal import JournalReader, parse_time
from deia_hardening.locks import unlock
from deia_hardening.outer import RecordSink
from deia_hardening.plugin import Actor, ASGIApp, Event, Health, HealthState, Host, Layer, Operation, Plugin, Position

T = TypeVar("T")
_SETTLE = 1.0
"""Seconds that a query with proofs waits for another thread that is writing."""


class AuditPlugin(Plugin[AuditSettings]):
    """Records every request and event, and keeps the evidence."""

    name: ClassVar[str] = "audit"
    Settings: ClassVar[type] = AuditSettings
    position: ClassVar[Position] = Position.OBSERVE

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.logger = AuditLogger(host)
        self.keeper = Keeper(host)
        self.keeper.after_tick = self.logger.retry
        self.keeper.in_tick = self.logger.forget_erased
        self._given = AuditSettings()
        self._inner = False

    async def check(self, settings: AuditSettings) -> None:
        parse_witnesses(settings.witnesses)
        Policy(settings.level, settings.rules, settings.probes)

    def layers(self, settings: AuditSettings) -> Sequence[Layer]:
        policy = Policy(settings.level, settings.rules, settings.probes)
        self._given = settings

        def record(app: ASGIApp) -> ASGIApp:
            return AuditMiddleware(app, self.logger, settings, policy)

        def serve(app: ASGIApp) -> ASGIApp:
            return LogsEndpoint(app, self.host, self.logger.query, settings.path, settings.query_limit)

        def intend(app: ASGIApp) -> ASGIApp:
            return IntentMiddleware(app, self.logger, settings)

        layers = [
            Layer(Position.OBSERVE, record, self.logger.failed),
            Layer(Position.CONTROL, serve, paths=(settings.path,)),
        ]
        if settings.guarantee == "intent":
            layers.append(Layer(Position.ROUTE, intend))
        return layers

    async def adopted(self, old: AuditSettings | None, new: AuditSettings) -> None:
        if self._inner:
            return
        await self._warm(new)
        self.logger.configure(new)
        self.keeper.configure(new)
        if old is not None and (weaker := weakened(old, new)):
            self.host.events.emit(AuditWeakened(reason=f"less is recorded or promised: {', '.join(weaker)}"))

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        here = await self.host.blocking(atrest.here, Layout.of(self.host.home))
        try:
            async with self._recording():
                yield
        finally:
            unlock(here)

    @asynccontextmanager
    async def _recording(self) -> AsyncIterator[None]:
        settings = self._settings()
        await self._warm(settings)
        self.logger.configure(settings)
        await self.host.blocking(self.logger.subjects.reapply)
        await self.host.blocking(self.host.page.open)
        self.logger.page = self.host.page
        await self.keeper.start(settings)
        sealer = self.keeper.sealer
        search = self.logger.search = Search(
            sealer.layout,
            lambda: sealer.checkpoint,
            connections=settings.query_connections,
            settle=self._settle,
            waits=False,
        )
        await self.host.blocking(self._told_start)
        await self.host.blocking(self._tell_untold)
        withdraw = self.host.services.provide(AuditLogger, self.logger)
        untake = self.host.services.provide(RecordSink, VersionRecords(self.host, self.logger))
        subscription = self.host.events.subscribe(Event, self.logger.record_event, inline=True)
        try:
            yield
        finally:
            subscription.cancel()
            untake()
            self.logger.flush_flood()
            self.logger.retry()
            if self._switched_off():
                self.logger.system("audit.switched-off", level="warning", reason="new settings name no audit plugin")
            else:
                self.logger.system("audit.stopped")
            withdraw()
            self.logger.search = None
            try:
                await self.keeper.stop()
            finally:
                await self.host.blocking(search.close)

    def at_rest(self, work: Callable[[], T], action: str, by: Actor, reason: str) -> T:
        """Do `work` on the trail with no service: told in the trail first, and under a checkpoint at the end. Blocking.

        Raises JournalError where nothing can be written.
        """
        self.keeper.configure(self._settings())
        sealer = self.keeper.sealer
        with newlog.exclusively(sealer.layout):
            sealer.open()
        told = {"reason": reason} if reason else {}
        receipt = self.logger.system(action, by=by, detail={"offline": True}, **told)
        receipt.wait()
        try:
            return work()
        finally:
            self.logger.journal.drain(_SETTLE)
            sealer.finish()

    def _settle(self) -> None:
        """Have the newest records on disk and under a checkpoint, for proofs of them."""
        self.logger.journal.drain(_SETTLE)
        self.keeper.sealer.tick()

    def _told_start(self) -> None:
        """Record the start, and how long nothing was recorded before it."""
        last = JournalReader(self.keeper.sealer.layout.log).last()
        members: dict[str, Any] = {}
        if last is not None:
            pause = self.host.clock.wall_ns() - parse_time(last.time)
            members = {"detail": {"pause_s": round(max(pause, 0) / 1e9, 3), "last": last.seq}}
        self.logger.system("audit.started", **members)

    def _tell_untold(self) -> None:
        """Record what was done while no service ran."""
        layout = self.keeper.sealer.layout
        with newlog.exclusively(layout):  # of several workers one
            deeds = untold.noted(layout)
            for action, actor, members in deeds:
                self.logger.system(action, by=actor, **members)
            if deeds and self.logger.journal.drain(_SETTLE):
                untold.told(layout)

    async def _warm(self, settings: AuditSettings) -> None:
        policy = Policy(settings.level, settings.rules, settings.probes)
        await self.host.blocking(lambda: self.logger.warm(settings, bodies=policy.highest >= Level.REQUEST))

    def _switched_off(self) -> bool:
        """Whether a reload has just turned the plugin off: the running settings do not name it any more."""
        try:
            self.host.settings(AuditSettings)
        except NotEnabled:
            return True
        except NotStarted:  # the app itself is gone
            return False
        return False

    def _settings(self) -> AuditSettings:
        """The running settings, or those of the revision that is just turning the plugin on."""
        try:
            return self.host.settings(AuditSettings)
        except NotEnabled:
            return self._given

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._live()

    @asynccontextmanager
    async def run_inner(self) -> AsyncIterator[None]:
        """In a version process: a logger whose records go up to the front."""
        from deia_hardening.upstream.inner import link  # the upstreams behind it are an import that few need

        up = link()
        assert up is not None
        self._inner = True
        logger = SendingLogger(self.host, up)
        withdraw = self.host.services.provide(AuditLogger, logger)
        subscription = self.host.events.subscribe(Event, logger.record_event, inline=True)
        try:
            yield
        finally:
            subscription.cancel()
            withdraw()

    def health(self) -> Health:
        health = self.keeper.health()
        if self.logger.search is None:  # it does not run
            return health
        journal = self.logger.journal.health()
        if journal.ok:
            return health
        detail = f"{journal.detail}; {health.detail}" if health.detail else journal.detail
        return Health(HealthState.DEGRADED, detail, journal.since)

    def operations(self) -> Sequence[Operation]:
        return operations(self)

    def witness_keys(self) -> list[VerifierKey]:
        """The verifier keys of the witnesses that the settings name."""
        return [key for key, _url in parse_witnesses(self._settings().witnesses)]
