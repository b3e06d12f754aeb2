"""Wires the config plugin: manager, flags and follower into the life of a hardened app."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from deia_config.flags import FlagSet
from deia_config.follow import Follower, compiled, flag_snapshot
from deia_config.inner import InnerFlags
from deia_config.operations import operations
from deia_config.service import ConfigManager
from deia_config.settings import ConfigSettings
from deia_hardening.events import RevisionApplied, RevisionRefused, Started
from deia_hardening.plugin import FeatureSource, Health, HealthState, Host, Layer, Operation, Plugin, Position
from deia_hardening.settings import Snapshot


class ConfigPlugin(Plugin[ConfigSettings]):
    """Settings that change while the service runs, with history, overrides and feature flags."""

    name = "config"
    Settings = ConfigSettings
    position = Position.OBSERVE

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.manager = ConfigManager(host)
        self.follower: Follower | None = None
        self._checked: tuple[ConfigSettings, FlagSet, Snapshot] | None = None

    async def check(self, settings: ConfigSettings) -> None:
        """Refuse settings whose flag files are broken."""
        self.manager.offered = settings
        if settings.flags == self.manager.settings().flags and self.follower is not None:
            return  # the same files, which are followed by themselves
        snapshot = await self.host.blocking(flag_snapshot, settings, self.host.home)
        flags = await self.host.blocking(compiled, snapshot, settings.flags.fractional)
        self._checked = (settings, flags, snapshot)

    def layers(self, settings: ConfigSettings) -> Sequence[Layer]:
        """None: it works beside the requests."""
        self.manager.offered = settings
        return ()

    async def adopted(self, old: ConfigSettings | None, new: ConfigSettings) -> None:
        """Put the flags that were checked with these settings in force, and follow what is named now."""
        checked, self._checked = self._checked, None
        if checked is not None and checked[0] == new:
            self.manager.adopt_flags(checked[1], checked[2])
        if self.follower is not None:
            self.follower.hint()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        host, manager = self.host, self.manager
        settings = manager.settings()
        snapshot = await host.blocking(flag_snapshot, settings, host.home)
        manager.adopt_flags(await host.blocking(compiled, snapshot, settings.flags.fractional), snapshot, first=True)
        await manager.load_state()
        _metrics(host, manager)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(manager.finish)
            stack.callback(host.services.provide(ConfigManager, manager))
            stack.callback(host.services.provide(FeatureSource, manager))
            stack.callback(host.events.subscribe(RevisionApplied, manager.applied, inline=True).cancel)
            stack.callback(host.events.subscribe(RevisionRefused, manager.was_refused, inline=True).cancel)
            self.follower = Follower(host, manager)
            stack.push_async_callback(self._end)
            for came_up in (Started, RevisionApplied):
                stack.callback(
                    host.events.subscribe(came_up, lambda event, up=self.follower.up: up(), inline=True).cancel
                )
            await self.follower.start()
            yield

    @asynccontextmanager
    async def run_inner(self) -> AsyncIterator[None]:
        """In a version process: the flags. Settings are changed and recorded by the front."""
        from deia_hardening.upstream.inner import link  # the upstreams behind it are an import that few need

        up = link()
        assert up is not None
        flags = InnerFlags(self.host, self.manager)
        await flags.read()
        withdraw = self.host.services.provide(FeatureSource, self.manager)
        flags.listen(up)
        following = asyncio.create_task(flags.follow(), name="deia-config-inner")
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})
            withdraw()

    async def _end(self) -> None:
        follower, self.follower = self.follower, None
        if follower is not None:
            await follower.stop()

    def operations(self) -> Sequence[Operation]:
        return operations(self.manager, lambda: self.follower)

    def health(self) -> Health:
        manager = self.manager
        figures = {"revision": manager.revision, "flags": len(manager.flag_set.flags)}
        if manager.agreement.behind:
            return Health(HealthState.FAILED, manager.agreement.behind, figures=figures)
        for what, refusal in (("settings", manager.refused), ("flags", manager.flags_refused)):
            if refusal is not None:
                detail = (
                    f"the last {what} were refused by {refusal.by}: {refusal.problems[0]}; the running ones were kept"
                )
                return Health(HealthState.DEGRADED, detail, refusal.at, figures)
        return Health(figures=figures)


def _metrics(host: Host, manager: ConfigManager) -> None:
    metrics = host.metrics
    metrics.gauge(
        "config_last_reload_successful",
        "1 when the last change of settings was applied, 0 when it was refused",
        lambda: 0.0 if manager.refused is not None else 1.0,
    )
    metrics.gauge(
        "config_last_reload_success_timestamp_seconds",
        "when the settings in force were applied, in Unix seconds",
        lambda: manager.history.newest.at if manager.history.newest is not None else 0.0,
    )
    metrics.gauge("config_revision", "the number of the revision in force", lambda: float(manager.revision))
