"""The plugin: wires settings, layer, engine, services and operations; decides nothing itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

from deia_hardening.errors import NotEnabled
from deia_hardening.plugin import (
    ASGIApp,
    Health,
    HealthState,
    Host,
    Layer,
    Operation,
    Plugin,
    Position,
    VersionSplit,
)
from deia_hardening.upstream import open_upstream
from deia_migration.choose import Chooser
from deia_migration.engine import Engine
from deia_migration.inner import PageSplit
from deia_migration.middleware import Rules, SplitLayer
from deia_migration.operations import operations
from deia_migration.outcome import BodyRules
from deia_migration.service import MigrationManager
from deia_migration.settings import MigrationSettings
from deia_migration.tasks import TaskSplit
from deia_migration.traffic import Router


class MigrationPlugin(Plugin[MigrationSettings]):
    """Moves requests and tasks from one version to another; see `docs/migration.md`."""

    name: ClassVar[str] = "migration"
    Settings: ClassVar[type] = MigrationSettings
    position: ClassVar[Position] = Position.ROUTE

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._proposed = MigrationSettings()
        self.router = Router()
        self.engine = Engine(host, self.router)
        self.manager = MigrationManager(host, self.router, self.engine)

    async def check(self, settings: MigrationSettings) -> None:
        """Refuse targets, resolvers and removals that could not be served. Raises SettingsError, ValueError."""
        for name, version in settings.versions.items():
            open_upstream(version.target, home=self.host.home, name=name)
        Chooser(settings, self.engine.table_of(settings))
        BodyRules(settings.failure)
        state = self.engine.rollout
        if state is not None and not state.phase.over and not state.digest:
            kept = settings.versions.get(state.candidate)
            if kept is None or kept.target != state.target:
                raise ValueError(f"version {state.candidate} is being rolled out: it can't be removed or changed now")

    def layers(self, settings: MigrationSettings) -> Sequence[Layer]:
        engine = self.engine
        self._proposed = settings
        mirror = engine.mirror_of(settings) if settings.mirror.routes else None
        rules = Rules(
            Chooser(settings, engine.table_of(settings)),
            BodyRules(settings.failure),
            frozenset(settings.failure.statuses),
            settings.shield,
            mirror,
            float(settings.restart_wait),
            settings.waiting,
            int(settings.kept_body),
        )

        def wrap(app: ASGIApp) -> ASGIApp:
            self.router.inner = app
            return SplitLayer(app, self.router, rules, engine.tell)

        return (Layer(Position.ROUTE, wrap),)

    async def adopted(self, old: MigrationSettings | None, new: MigrationSettings) -> None:
        self.engine.settings = new

    def _settings(self) -> MigrationSettings:
        try:
            return self.host.settings(MigrationSettings)
        except NotEnabled:  # it is being turned on: its revision comes into force when it runs
            return self._proposed

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        host = self.host
        withdraw = (
            host.services.provide(MigrationManager, self.manager),
            host.services.provide(VersionSplit, TaskSplit(self.router, lambda: self.engine.settings)),
        )
        try:
            await self.engine.open(self._settings())
            yield
        finally:
            for take_back in withdraw:
                take_back()
            await self.engine.close()

    @asynccontextmanager
    async def run_inner(self) -> AsyncIterator[None]:
        """In a version process: which tasks belong to it. Routing and rollouts are the front's."""
        page = self.host.page
        await self.host.blocking(page.open)
        withdraw = self.host.services.provide(VersionSplit, PageSplit(page.state, self._settings))
        try:
            yield
        finally:
            withdraw()

    def operations(self) -> Sequence[Operation]:
        return operations(self.manager)

    def health(self) -> Health:
        status = self.manager.status()
        figures = {
            "phase": status.phase,
            "weight": status.weight,
            "serves": ", ".join(f"{one.name} {one.weight:.4g}" for one in status.versions),
        }
        if status.problem:
            return Health(HealthState.DEGRADED, status.problem, figures=figures)
        return Health(figures=figures)
