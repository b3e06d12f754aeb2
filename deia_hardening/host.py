"""What a plugin reaches the core through: one small object per plugin and app.

It holds the core weakly, so an app that nobody uses any more is collected with everything that ran for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ReferenceType

from deia_hardening.context import SYSTEM, Actor
from deia_hardening.errors import NotEnabled, NotStarted
from deia_hardening.replay import replay
from deia_hardening.runtime import Runtime, runtime
from deia_hardening.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from deia_hardening.journal import Journal
    from deia_hardening.lifecycle import Core
    from deia_hardening.revision import Revision
    from deia_hardening.store import HomePage, SharedStore

T = TypeVar("T")


def _alive(reference: ReferenceType[Core]) -> Core:
    core = reference()
    if core is None:
        raise NotStarted("the hardened app is gone")
    return core


class AppHost:
    """The `Host` of one plugin of one app."""

    def __init__(self, name: str, core: ReferenceType[Core]) -> None:
        owner = _alive(core)
        self._core = core
        self.name = name
        self.clock = owner.clock
        self.events = owner.events
        self.services = owner.services
        self.metrics = owner.metrics
        self.server = owner.serving
        self.home_handle = owner.home
        self.home: Path = owner.home.path
        self.revisions = AppRevisions(core)

    @property
    def runtime(self) -> Runtime:
        return runtime()

    @property
    def store(self) -> SharedStore:
        from deia_hardening.store import StoreSettings

        return self.home_handle.store(self.settings(StoreSettings))

    @property
    def page(self) -> HomePage:
        return self.store.page

    def journal(self, name: str) -> Journal:
        from deia_hardening.journal import JournalSettings

        return self.home_handle.journal(name, self.settings(JournalSettings))

    def settings(self, kind: type[T]) -> T:
        """The settings object of type `kind` in the running revision; raises NotEnabled where there is none."""
        core = _alive(self._core)
        found = core.revision.settings.get(kind)
        if found is None and core.coming is not None:
            found = core.coming.settings.get(kind)
        if found is None:
            raise NotEnabled(f"no section of the running settings is a {kind.__name__}")
        return found  # type: ignore[no-any-return]

    def blocking(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return runtime().blocking(function, *args)

    def touched(self) -> None:
        core = self._core()
        if core is not None:
            core.failures.pop(self.name, None)

    def verdict(self, value: str) -> None:
        """Recovery tells how the last run ended: clean, crash, reboot or unknown."""
        _alive(self._core).verdict = value


class AppRevisions:
    """The `Revisions` service of one app."""

    def __init__(self, core: ReferenceType[Core]) -> None:
        self._core = core

    @property
    def current(self) -> Revision:
        return _alive(self._core).revision

    @property
    def document(self) -> Any:
        return _alive(self._core).revision.document

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The run-time overrides in force."""
        return _alive(self._core).overrides

    @property
    def source(self) -> Any:
        """The folder, file or mapping that the settings are read from."""
        return _alive(self._core).source.config

    async def check(self, *, overrides: Mapping[str, Any] | None = None) -> Any:
        plan, _ = await runtime().run(_alive(self._core).prepare, overrides)
        return plan

    async def propose(
        self, *, overrides: Mapping[str, Any] | None = None, source: str, actor: Actor = SYSTEM, reason: str = ""
    ) -> Revision:
        return await runtime().run(_alive(self._core).propose, overrides, source, actor, reason)

    async def enter(self, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Call `app`, else the hardened app's chain below CONTROL, with a made-up request."""
        await replay(_alive(self._core).revision, app, scope, receive, send)
