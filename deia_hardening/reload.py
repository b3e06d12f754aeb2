"""One reload: read, check, build beside the old, one assignment, tell everybody.

A failure before the assignment has changed nothing; what was entered for the new revision is left again. A failure
after it goes to the plugin's health. A plugin that was turned off lives until its last request has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deia_hardening.actor import Actor
from deia_hardening.errors import ReloadRefused, SettingsError, StartError
from deia_hardening.events import RevisionApplied, RevisionRefused
from deia_hardening.life import sentence
from deia_hardening.peers import build_identify
from deia_hardening.plan import Plan
from deia_hardening.plugin import Health, HealthState, Plugin
from deia_hardening.revision import Revision
from deia_hardening.runtime import runtime
from deia_hardening.sections import RequestsSettings

if TYPE_CHECKING:
    from deia_hardening.lifecycle import Core

logger = logging.getLogger("deia_hardening")
Plugins = dict[str, Plugin[Any]]


class Reload:
    """One proposal to one app. On the background loop, one at a time (the core holds the lock)."""

    def __init__(self, core: Core, overrides: Mapping[str, Any] | None, source: str, actor: Actor, reason: str) -> None:
        self.core = core
        self.overrides: Mapping[str, Any] = core.overrides if overrides is None else dict(overrides)
        self.source = source
        self.actor = actor
        self.reason = reason

    async def run(self) -> Revision:
        """Switch to what the sources say now. Raises SettingsError or ReloadRefused; then nothing has changed."""
        core = self.core
        try:
            plan, plugins = await self.prepare()
            same = plan.loaded.fingerprint == core.plan.loaded.fingerprint  # the digest leaves secrets out
            if same and set(plugins) == set(core.plugins):
                core.overrides, core.plan, core.refused = self.overrides, plan, None
                return core.revision
            new = self._build(plan, plugins)
            try:
                await self._enter(plan, plugins)
            finally:
                core.coming = None
        except (SettingsError, ReloadRefused) as error:
            self._refused(error)
            raise
        old, removed = core.adopt(new, plan, plugins, self.overrides)  # the one assignment is in there
        await self._tell(old, new, plugins, removed)
        self._retire(old, removed)
        return new

    def _refused(self, error: SettingsError | ReloadRefused) -> None:
        problems = tuple(map(str, error.problems)) if isinstance(error, SettingsError) else (str(error),)
        by = error.by if isinstance(error, ReloadRefused) else "settings"
        core = self.core
        detail = f"the last settings were refused: {problems[0]}"
        core.refused = Health(HealthState.DEGRADED, detail, core.clock.wall())
        core.events.emit(
            RevisionRefused(actor=self.actor, reason=self.reason, by=by, problems=problems, source=self.source)
        )

    async def prepare(self) -> tuple[Plan, Plugins]:
        """Read the sources and have every plugin check the result; no effect."""
        core = self.core
        plan: Plan = await runtime().blocking(core.source.load, self.overrides)
        if plan.home.absolute() != core.home.path:
            raise ReloadRefused("core", f"'home' changed from {core.home.path} to {plan.home}: that needs a restart")
        build_identify(plan.settings[RequestsSettings])
        plugins = core.instances(plan, core.plugins)
        timeout = float(core.requests.check_timeout)
        for name, plugin in plugins.items():
            try:
                await asyncio.wait_for(plugin.check(plan.sections[name]), timeout)
            except TimeoutError:
                raise ReloadRefused(name, f"its check did not end within {timeout:g} s") from None
            except (SettingsError, ReloadRefused):
                raise
            except Exception as error:
                raise ReloadRefused(name, sentence(error)) from error
        return plan, plugins

    def _build(self, plan: Plan, plugins: Plugins) -> Revision:
        try:
            return self.core.build_revision(self.core.revision.number + 1, plan, plugins)
        except Exception as error:
            raise ReloadRefused("core", f"the chain could not be built: {sentence(error)}") from error

    async def _enter(self, plan: Plan, plugins: Plugins) -> None:
        """Enter `run()` of the plugins that are new; leave them again when one can't start."""
        core = self.core
        if not core.ready:
            return
        entered: list[str] = []
        core.coming = plan
        for plugin in core.ordered(p for n, p in plugins.items() if core.plugins.get(n) is not p):
            try:
                await core.enter(plugin, core.requests.start_timeout)
                entered.append(plugin.name)
            except StartError as error:
                for name in reversed(entered):
                    await core.lives.pop(name).stop(core.requests.stop_timeout)
                raise ReloadRefused(error.plugin, error.why) from error

    async def _tell(self, old: Revision, new: Revision, plugins: Plugins, removed: list[Plugin[Any]]) -> None:
        core = self.core
        gone = {plugin.name for plugin in removed}
        for plugin in core.ordered(plugins.values()):
            before = old.sections.get(plugin.name) if plugin.name not in gone else None
            try:
                await plugin.adopted(before, new.sections[plugin.name])
            except Exception as error:
                logger.exception("plugin '%s' could not follow revision %d", plugin.name, new.number)
                detail = f"it could not follow revision {new.number}: {sentence(error)}"
                core.failures[plugin.name] = Health(HealthState.DEGRADED, detail, time.time())
        core.events.emit(
            RevisionApplied(
                actor=self.actor, reason=self.reason, number=new.number, digest=new.digest, source=self.source
            )
        )

    def _retire(self, old: Revision, removed: list[Plugin[Any]]) -> None:
        """End the removed plugins' `run()` when the last request has left `old`, or at the deadline."""
        core = self.core
        lives = [core.lives.pop(p.name) for p in core.ordered(removed) if p.name in core.lives]
        if not lives:
            return
        left = asyncio.Event()
        loop = asyncio.get_running_loop()

        def gone() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(left.set)

        weakref.finalize(old, gone).atexit = False
        leave, stop = float(core.requests.leave_timeout), float(core.requests.stop_timeout)

        async def end() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(left.wait(), leave)
            for life in reversed(lives):
                await life.stop(stop)

        runtime().submit(end)
