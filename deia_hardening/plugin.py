"""The plugin author's page: everything that a plugin imports from the core.

A plugin is one class with a frozen attrs class of settings. It is made once per app, without I/O; it gives
each revision its layers, lives while `run()` is entered, and reaches everything else through its `Host`. Whatever
it raises in `check` refuses a revision; whatever it raises in `run()` refuses the start. Cleanup in `run()` runs
also when a later plugin could not start.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import attrs

from deia_hardening.clock import Clock
from deia_hardening.context import ANONYMOUS, SYSTEM, Actor, Mode, RequestContext
from deia_hardening.events import Event, Events, Subscription, Target
from deia_hardening.exchange import Exchange
from deia_hardening.metrics.core import Metrics
from deia_hardening.operations import Call, NoInput, Operation, Progress, Role
from deia_hardening.problem import Problem
from deia_hardening.routing import RoutePattern, Routes, route_path
from deia_hardening.runtime import Completion, Latch, Runtime
from deia_hardening.services import AcceptedTask, FeatureMask, FeatureSource, Services, TaskSink, VersionSplit
from deia_hardening.sharding import bucket
from deia_hardening.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from deia_hardening.journal import Journal, Receipt
    from deia_hardening.store import HomePage as Page
    from deia_hardening.store import SharedStore as Store

S = TypeVar("S")
T = TypeVar("T")


class Position(enum.IntEnum):
    """Where a layer stands, outermost first; and the order in which plugins start. Ties go by plugin name."""

    OBSERVE = 10
    STATE = 20
    CONTROL = 30
    ADMIT = 40
    ROUTE = 50
    INNER = 60


@attrs.frozen
class Layer:
    """One part of a revision's chain: `wrap(app)` returns an ASGI callable around `app`.

    `wrap` is called once per revision, is pure, and its result may be discarded unused.
    """

    position: Position
    wrap: Callable[[ASGIApp], ASGIApp]
    failed: Callable[[RequestContext], None] | None = None
    """Called on the serving loop when a call of the app raised, with `context.error`; it must not raise or block."""
    paths: tuple[str, ...] = ()
    """Where all that this layer does has to do with few paths: texts of which each of them holds one. Requests whose
    path holds none are not led through it."""


class HealthState(enum.StrEnum):
    """How a plugin is. `FAILED` means that nothing local can serve because of it."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@attrs.frozen
class Health:
    """How a plugin is, what is wrong in one sentence, since when (Unix seconds), and figures for the reader."""

    state: HealthState = HealthState.OK
    detail: str = ""
    since: float = 0.0
    figures: Mapping[str, Any] = attrs.field(factory=dict)


class ServerScope(Protocol):
    """The serving loop while a lifespan is open: where an in-process version's lifespan or a replay runs."""

    @property
    def open(self) -> bool:
        """Whether a lifespan is open now."""

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Completion[Any]:
        """Run `function(*args)` as a task on the serving loop; it is cancelled when the lifespan ends.

        Callable from any thread. Raises `NotStarted` when no lifespan is open.
        """


class Revisions(Protocol):
    """The accepted settings, and the one way to change them. Awaitable from any loop."""

    @property
    def current(self) -> Any:
        """The running `Revision`: number, settings by section, digest."""

    @property
    def document(self) -> Any:
        """The merged settings document of the running revision, with the origin of every leaf."""

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The run-time overrides in force."""

    @property
    def source(self) -> Any:
        """The folder or file (a Path) or mapping that the settings are read from."""

    async def check(self, *, overrides: Mapping[str, Any] | None = None) -> Any:
        """Read everything anew and try it on every plugin, with no effect. Raises SettingsError, ReloadRefused."""

    async def propose(
        self, *, overrides: Mapping[str, Any] | None = None, source: str, actor: Actor = SYSTEM, reason: str = ""
    ) -> Any:
        """Read the sources anew (with `overrides`, or the running ones) and switch to the result.

        Returns the running revision, unchanged if nothing differs. Raises SettingsError or ReloadRefused; then
        nothing has changed. Both outcomes are events (`RevisionApplied`, `RevisionRefused`).
        """

    async def enter(self, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the running chain below CONTROL with a made-up request (replays of accepted work)."""


class Host(Protocol):
    """What a plugin reaches the core through. Attributes are safe from any thread."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    @property
    def home(self) -> Path:
        """The folder `.deia`, absolute."""

    @property
    def clock(self) -> Clock:
        """The clock; tests replace it."""

    @property
    def events(self) -> Events: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def runtime(self) -> Runtime:
        """The process's background loop."""

    @property
    def server(self) -> ServerScope: ...

    @property
    def services(self) -> Services: ...

    @property
    def revisions(self) -> Revisions: ...

    @property
    def store(self) -> Store:
        """The home's store of small shared state (async methods, from any loop)."""

    @property
    def page(self) -> Page:
        """The home's mapped page: what every worker sees at its next request."""

    def journal(self, name: str) -> Journal:
        """The home's journal `<name>.jsonl`; opened at the first append."""

    def settings(self, kind: type[T]) -> T:
        """This plugin's (or a core section's, or the app's) settings in the running revision."""

    def blocking(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        """Await `function(*args)`, run on a core-owned thread, from any loop."""

    def touched(self) -> None:
        """The plugin has recovered: what the core noted against its health is forgotten."""


class Plugin(Generic[S]):
    """The base class of plugins; every method but `layers` has a default that does nothing.

    Example:
        class Hello(Plugin[HelloSettings]):
            name = "hello"
            Settings = HelloSettings
            position = Position.INNER

            def layers(self, settings):
                return [Layer(Position.INNER, lambda app: HelloMiddleware(app, settings))]
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]]
    position: ClassVar[Position] = Position.INNER

    def __init__(self, host: Host) -> None:
        """Keep what is needed; no I/O, no thread, no loop. The object outlives revisions."""
        self.host = host

    async def check(self, settings: S) -> None:
        """Refuse a revision by raising; no effects. Called on the background loop, in bounded time."""

    def layers(self, settings: S) -> Sequence[Layer]:
        """This plugin's parts of the chain for a revision with these settings; pure, may be discarded."""
        return ()

    async def adopted(self, old: S | None, new: S) -> None:
        """The revision with `new` is in force. Called on the background loop; an error goes to health."""

    @asynccontextmanager
    async def _nothing(self) -> AsyncIterator[None]:
        yield

    def run(self) -> AbstractAsyncContextManager[None]:
        """The plugin's life, on the background loop: entered before the app's lifespan, left after it."""
        return self._nothing()

    def run_inner(self) -> AbstractAsyncContextManager[None]:
        """Its life in a version process (the inner role), instead of `run()`: services for handlers, without layers,
        locks, keys or schedules. The default offers nothing."""
        return self._nothing()

    def operations(self) -> Sequence[Operation]:
        """What an operator can do with this plugin; asked once."""
        return ()

    def health(self) -> Health:
        """How it is, now; cheap, callable from any thread."""
        return Health()


class Authenticator(Protocol):
    """Who calls the control plane (the control plugin provides it): for plugins that serve a route of their own."""

    async def authenticate(self, scope: Scope, role: Role) -> Actor:
        """The caller of this HTTP request; raises `Problem` 401 or 403 when the token does not grant `role`."""


__all__ = [
    "ANONYMOUS",
    "SYSTEM",
    "ASGIApp",
    "AcceptedTask",
    "Actor",
    "Authenticator",
    "Call",
    "Clock",
    "Completion",
    "Event",
    "Events",
    "Exchange",
    "FeatureMask",
    "FeatureSource",
    "Health",
    "HealthState",
    "Host",
    "Journal",
    "Latch",
    "Layer",
    "Message",
    "Metrics",
    "Mode",
    "NoInput",
    "Operation",
    "Page",
    "Plugin",
    "Position",
    "Problem",
    "Progress",
    "Receipt",
    "Receive",
    "RequestContext",
    "Revisions",
    "Role",
    "RoutePattern",
    "Routes",
    "Runtime",
    "Scope",
    "Send",
    "ServerScope",
    "Services",
    "Store",
    "Subscription",
    "Target",
    "TaskSink",
    "VersionSplit",
    "bucket",
    "route_path",
]


def __getattr__(name: str) -> Any:
    """Import the journal's and the store's names on first use: they cost an import that not everybody needs."""
    if name in ("Journal", "Receipt"):
        import deia_hardening.journal as journal

        return getattr(journal, name)
    if name in ("Store", "Page"):
        import deia_hardening.store as store

        return getattr(store, "HomePage" if name == "Page" else "SharedStore")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
