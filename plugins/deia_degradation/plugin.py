"""The plugin: wires the manager to the core. Modes, admission and pools decide elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

from deia_degradation.fallback.layer import BotLayer
from deia_degradation.middleware import Admission
from deia_degradation.operations import operations
from deia_degradation.service import DegradationManager
from deia_degradation.settings import DegradationSettings
from deia_hardening.plugin import FeatureMask, Health, HealthState, Host, Layer, Mode, Operation, Plugin, Position
from deia_hardening.sections import RequestsSettings


class DegradationPlugin(Plugin[DegradationSettings]):
    """Slower, never down: modes, admission, bots that stand in for each other."""

    name: ClassVar[str] = "degradation"
    Settings: ClassVar[type] = DegradationSettings
    position: ClassVar[Position] = Position.ADMIT

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._manager: DegradationManager | None = None

    def manager(self, settings: DegradationSettings) -> DegradationManager:
        """The one manager of this app, made with the first settings."""
        if self._manager is None:
            self._manager = DegradationManager(self.host, settings)
        return self._manager

    def layers(self, settings: DegradationSettings) -> Sequence[Layer]:
        manager = self.manager(settings)
        found = [Layer(Position.ADMIT, lambda app: Admission(app, manager, settings))]
        if any(pool.routes for pool in settings.pools.values()):
            found.append(Layer(Position.INNER, lambda app: BotLayer(app, manager, settings)))
        return found

    async def adopted(self, old: DegradationSettings | None, new: DegradationSettings) -> None:
        await self.manager(new).adopt(new, self._proxies())

    def _proxies(self) -> tuple[str, ...]:
        return self.host.settings(RequestsSettings).believed_proxies

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        manager = self._manager
        assert manager is not None  # the layers come first
        await self.host.blocking(manager.start, self._proxies())
        await manager.load_pin()
        withdraw = self.host.services.provide(DegradationManager, manager)
        unmask = self.host.services.provide(FeatureMask, manager)
        try:
            for pool in manager.pools.values():
                await pool.follow_upstreams()
            manager.ticks.begin_checks()
            yield
        finally:
            unmask()
            withdraw()
            await manager.stop()

    @asynccontextmanager
    async def run_inner(self) -> AsyncIterator[None]:
        """In a version process: pools for outgoing calls, and masks by the front's mode."""
        from deia_degradation.inner import InnerManager
        from deia_hardening.upstream.inner import link  # the upstreams behind it are an import that few need

        up = link()
        assert up is not None
        manager = self._manager = InnerManager(self.host, self.host.settings(DegradationSettings), up)
        withdraw = self.host.services.provide(DegradationManager, manager)
        unmask = self.host.services.provide(FeatureMask, manager)
        await self.host.blocking(manager.share_budgets)
        try:
            for pool in manager.pools.values():
                await pool.follow_upstreams()
            yield
        finally:
            unmask()
            withdraw()
            manager.ledger.close()
            for pool in manager.pools.values():
                await pool.stop_upstreams()

    def operations(self) -> Sequence[Operation]:
        return operations(lambda: self.manager(self.host.settings(DegradationSettings)))

    def health(self) -> Health:
        manager = self._manager
        if manager is None:
            return Health()
        control = manager.control
        figures = {
            "mode": control.mode.value,
            "limit": manager.gate.limit.limit,
            "in_flight": manager.gate.in_flight,
            "in_threads": sum(gate.in_flight for gate in manager.threads.all()),
            "waiting": sum(gate.room.size for gate in (manager.gate, *manager.threads.all())),
            "streams": manager.gate.streams,
        }
        if control.mode is Mode.FULL:
            trouble = manager.ledger.trouble
            return Health(HealthState.DEGRADED if trouble else HealthState.OK, trouble, figures=figures)
        detail = f"mode {control.mode.value}: {control.state.cause or control.state.source.name.lower()}"
        lasted = self.host.clock.monotonic() - control.state.since
        if control.mode is Mode.MAINTENANCE and manager.gate.streams and lasted > manager.settings.maintenance.drain:
            detail += f"; {manager.gate.streams} streams are open after {lasted:.0f} s"
        since = self.host.clock.wall() - lasted
        return Health(HealthState.DEGRADED, detail, since, figures)
