"""Typed events: how the plugins tell each other, and the trail, what happened.

Inline subscribers (audit) get each event on the caller's thread, without loss. Everybody else has a bounded
queue of its own, drained on the background loop: a slow subscriber delays nobody and loses, counted, only its own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from deia_hardening.context import Actor, Mode, context_variable

if TYPE_CHECKING:
    from deia_hardening.runtime import Runtime

logger = logging.getLogger("deia_hardening.events")


@attrs.frozen
class Target:
    """What an event is about: a type of the field ("bot", "task", "version", "setting") and its id."""

    type: str
    id: str


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened. Subclasses add typed fields; these are what the trail shows.

    `action` is dotted (`bot.assigned`), `change` maps a field to (old, new), `actor` is None for "whoever the
    current request's is, else the system", `outcome` is success, failure or refused.
    """

    action: str
    target: Target | None = None
    change: Mapping[str, tuple[Any, Any]] = attrs.field(factory=dict)
    actor: Actor | None = None
    reason: str = ""
    outcome: str = "success"
    kind: str = "state"
    level: str = "info"


@attrs.frozen(kw_only=True)
class Started(Event):
    """The hardened app is up: its plugins run, the app's own lifespan comes next."""

    action: str = "service.started"
    kind: str = "system"
    verdict: str = "unknown"


@attrs.frozen(kw_only=True)
class Stopping(Event):
    """The hardened app is going down; journals and store still take writes."""

    action: str = "service.stopping"
    kind: str = "system"


@attrs.frozen(kw_only=True)
class RevisionApplied(Event):
    """New settings are in force."""

    action: str = "config.applied"
    kind: str = "system"
    number: int
    digest: str = ""
    source: str = ""


@attrs.frozen(kw_only=True)
class RevisionRefused(Event):
    """Proposed settings were refused; the running ones were kept."""

    action: str = "config.refused"
    kind: str = "system"
    outcome: str = "refused"
    by: str = ""
    problems: tuple[str, ...] = ()
    source: str = ""


@attrs.frozen(kw_only=True)
class ModeChanged(Event):
    """FULL, DEGRADED or MAINTENANCE began."""

    action: str = "mode.changed"
    old: Mode
    new: Mode
    cause: str = ""


@attrs.frozen(kw_only=True)
class BotChanged(Event):
    """A bot was ejected, restored, drained, added or removed."""

    action: str = "bot.changed"
    kind: str = "bot"
    pool: str
    bot: str
    state: str


@attrs.frozen(kw_only=True)
class WeightChanged(Event):
    """The candidate's share of new keys changed, in [0, 1]."""

    action: str = "version.weight"
    rollout: str
    weight: float


@attrs.frozen(kw_only=True)
class OperationInvoked(Event):
    """An operation of the control plane ended; `actor` is who called it."""

    action: str = "operation.invoked"
    kind: str = "system"
    operation: str


E = TypeVar("E", bound=Event)
Handler = Callable[[Any], None]
AsyncHandler = Callable[[Any], Coroutine[Any, Any, None]]


class Subscription:
    """One subscriber; `cancel()` ends it. `dropped` counts events that its full queue lost."""

    dropped = 0

    def __init__(self, events: Events, kind: type[Event] | str, handler: Handler | AsyncHandler, limit: int) -> None:
        self.kind = kind
        self.handler = handler
        self._events = events
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._running = False

    def matches(self, event: Event) -> bool:
        if isinstance(self.kind, str):
            return self.covers(type(event))
        return isinstance(event, self.kind)

    def covers(self, kind: type[Event]) -> bool:
        """Whether events of this class are told to this subscriber."""
        if isinstance(self.kind, str):
            name = self.kind
            return any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in kind.__mro__)
        return issubclass(kind, self.kind)

    def cancel(self) -> None:
        self._events._remove(self)

    def _push(self, event: Event, runtime: Runtime) -> None:
        with self._events._lock:
            if len(self._queue) >= self._limit:
                self.dropped += 1
                return
            self._queue.append(event)
            if self._running:
                return
            self._running = True
        runtime.submit(self._drain)

    async def _drain(self) -> None:
        while True:
            with self._events._lock:
                if not self._queue:
                    self._running = False
                    return
                event = self._queue.popleft()
            try:
                result = self.handler(event)
                if result is not None:
                    await result
            except Exception:
                logger.exception("a subscriber of %s failed on %s", self.kind, event.action)


class Events:
    """The event bus of one hardened app."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._inline: tuple[Subscription, ...] = ()
        self._queued: tuple[Subscription, ...] = ()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        for subscription in self._queued:
            subscription._queue.clear()
            subscription._running = False

    def subscribe(
        self, kind: type[Event] | str, handler: Handler | AsyncHandler, *, inline: bool = False, limit: int = 1024
    ) -> Subscription:
        """Call `handler(event)` for each event of `kind` (a class, or the dotted name of one that may be absent).

        `inline`: on the emitter's thread, before `emit` returns; the handler must be quick and must not block.
        Otherwise on the background loop (sync or async), in order, through a queue of `limit` events.
        """
        subscription = Subscription(self, kind, handler, limit)
        with self._lock:
            if inline:
                self._inline = (*self._inline, subscription)
            else:
                self._queued = (*self._queued, subscription)
        return subscription

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._inline = tuple(s for s in self._inline if s is not subscription)
            self._queued = tuple(s for s in self._queued if s is not subscription)

    def heard(self, kind: type[Event]) -> bool:
        """Whether an event of this class would be told to anybody: who makes many of them asks before."""
        return any(one.covers(kind) for one in (*self._inline, *self._queued))

    def emit(self, event: Event) -> None:
        """Tell everybody. Thread-safe, never blocks, never raises; the actor is filled in from the request."""
        if event.actor is None:
            context = context_variable.get()
            if context is not None:
                event = attrs.evolve(event, actor=context.actor, reason=event.reason or context.reason)
        for subscription in self._inline:
            if subscription.matches(event):
                try:
                    subscription.handler(event)
                except Exception:
                    logger.exception("an inline subscriber failed on %s", event.action)
        for subscription in self._queued:
            if subscription.matches(event):
                subscription._push(event, self._runtime)
