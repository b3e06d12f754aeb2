"""The early layer: is this request served in this mode, and may it come in now.

It holds no state of its own; mode and slots belong to the manager, so a reload changes rules and nobody's place.
With a slot free it costs a small object and two callbacks of the exchange; nothing is locked or awaited, no timer is
set. A slot is given back when the last body message went out, or when the answer turns out to be a stream, never as
late as background tasks. Requests for synchronous endpoints take the slots of the thread pool that runs them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from deia_degradation.accept import accept_task
from deia_degradation.admission.endpoints import SyncEndpoints
from deia_degradation.admission.gate import Gate, OpenGate
from deia_degradation.admission.room import Criticality, Waiter, WaiterState
from deia_degradation.admission.waiting import wait_for
from deia_degradation.gatekeeping import ModeGate, refuse
from deia_degradation.settings import DegradationSettings
from deia_degradation.slot import OpenStream, Slot
from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import (
    ASGIApp,
    Latch,
    Mode,
    Problem,
    Receive,
    RequestContext,
    Routes,
    Scope,
    Send,
)
from deia_hardening.store import PAGE_WORD

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

_FULL = Mode.FULL
"""A look at an enum's member costs as much as three comparisons."""


@attrs.frozen
class Rule:
    """What holds for a route, worked out once per revision."""

    modes: frozenset[Mode] = frozenset({Mode.FULL, Mode.DEGRADED})
    full: bool = True
    """Whether FULL is among them."""
    criticality: Criticality | None = None
    deadline: float | None = None
    stream: bool = False
    accept: bool = False
    """Whether a POST that is refused becomes a task."""


class Admission:
    """The ADMIT layer of one revision."""

    def __init__(self, app: ASGIApp, manager: DegradationManager, settings: DegradationSettings) -> None:
        self.app = app
        self.manager = manager
        self.control = manager.control
        enabled = settings.admission.enabled
        self.gate = manager.gate if enabled else OpenGate(manager.gate)
        self.deadline = float(settings.admission.deadline)
        self.modes = ModeGate(manager.control, settings)
        self.settings = settings.admission
        self._default = Slot.kept(self, self.gate, Rule())
        self._rules: Routes[Slot] = Routes(
            (rule.route, Slot.kept(self, self.gate, _rule(rule))) for rule in settings.routes
        )
        self._accepts: Routes[bool] = Routes(
            (text, True) for pool in settings.pools.values() if pool.accept for text in pool.routes
        )
        self._criticality = Criticality[settings.admission.criticality.upper()]
        self._header = settings.admission.criticality_header.lower().encode("latin-1")
        self._roles = {role: Criticality[name.upper()] for role, name in settings.admission.actors.items()}
        self._sync = manager.sync_endpoints if enabled and settings.admission.threads else SyncEndpoints()
        self._quota = settings.admission.client_quota.requests > 0
        self._long: Routes[bool] | None = None
        """The revision's, known with the first request."""
        self._special = True
        """Whether more is asked of a request than that the mode is FULL."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of our own around a request that comes in at once: its end is told by the exchange.
        context: RequestContext = scope[SCOPE_KEY]
        now = context.received
        control = self.control
        if now >= control.due or control.page.words[PAGE_WORD] != control.page_version:
            self.manager.look(scope)
        slot = self._default
        if self._special or control.mode is not _FULL or scope["type"] == "websocket":
            found = self._judge(scope, receive, send, context)
            if not isinstance(found, Slot):
                return found
            slot = found
        gate = self.gate
        if gate.crowded and self.manager.stream_routes.match(scope):
            return self._no_stream(scope, send)
        deadline = context.deadline
        if deadline is not None and deadline <= monotonic():
            self.manager.beside += 1
            self.manager.shed += 1
            problem = Problem(503, "Its deadline has passed; nothing was done.", retry_after=_jittered(1.0))
            return refuse(problem, scope, send)
        if not self._sync.empty and self._sync.match(scope):
            return self._later(self.manager.threads.here(), scope, receive, send, context, slot.rule)
        if not gate.enter():
            return self._later(gate, scope, receive, send, context, slot.rule)
        context.on_both(slot.begun, slot.over)
        return self.app(scope, receive, send)

    def _judge(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> Slot | Awaitable[None]:
        """The slot that this request needs under its rule, or what is done about it instead."""
        long = self._long
        if long is None:
            self._long = long = context.revision.long
            self._special = not self._rules.empty or self._quota or not long.empty
        manager = self.manager
        mode = self.control.mode
        slot: Slot = self._rules.match(scope, self._default)
        rule = slot.rule
        if mode is not _FULL or not rule.full:
            context.mode = mode
            problem = self.modes.refusal(scope, context, mode, rule.modes)
            if problem is not None:
                manager.beside += 1
                return refuse(problem, scope, send)
        if rule.deadline is not None:
            until = context.received + rule.deadline
            if context.deadline is None or until < context.deadline:
                context.deadline = until
        if self._quota:
            problem = manager.clients.refusal(scope, context, context.received)
            if problem is not None:
                manager.beside += 1
                return refuse(problem, scope, send)
        if rule.stream or scope["type"] == "websocket" or (not long.empty and long.match(scope)):
            return self._stream(scope, receive, send, context, rule)
        return slot

    async def _later(
        self, gate: Gate, scope: Scope, receive: Receive, send: Send, context: RequestContext, rule: Rule
    ) -> None:
        """A thread's slot, or none is free: wait for one, or be refused."""
        self.manager.beside += 1
        if gate is not self.gate and gate.enter():
            Slot(self, gate, rule).hold(context)
            await self.app(scope, receive, send)
            return
        admitted, receive = await self._wait(gate, scope, receive, send, context, rule)
        if admitted:
            Slot(self, gate, rule, monotonic()).hold(context)
            await self.app(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, context: RequestContext, rule: Rule) -> None:
        """What is known to be long from the start takes a stream's slot, and never one of the others."""
        gate = self.gate
        if not gate.enter_stream():
            await self._no_stream(scope, send)
            return
        self.manager.beside += 1
        context.lasts()
        context.on_end(OpenStream(self, gate, context, rule, send).over)
        await self.app(scope, receive, send)

    async def _no_stream(self, scope: Scope, send: Send) -> None:
        self.manager.beside += 1
        self.manager.shed += 1
        detail = f"{self.gate.streams} streams are open, as many as this service holds; try again later."
        await refuse(Problem(503, detail, retry_after=_jittered(5.0)), scope, send)

    async def _wait(
        self, gate: Gate, scope: Scope, receive: Receive, send: Send, context: RequestContext, rule: Rule
    ) -> tuple[bool, Receive]:
        now = monotonic()
        criticality = rule.criticality if rule.criticality is not None else self._criticality_of(scope, context)
        allowance = float(self.settings.wait_degraded if context.mode is Mode.DEGRADED else self.settings.wait)
        until = now + allowance
        if context.deadline is not None:
            # What can no longer finish in time is not started: its own work takes some time too.
            until = min(until, context.deadline - gate.limit.baseline)
        latch = Latch()
        waiter = Waiter(criticality, now, allowance, until, latch.set)
        if gate.wait(waiter, now):
            self.manager.ticks.sweep_soon()
            try:
                receive = await wait_for(latch, receive)
            except BaseException:
                gate.abandon(waiter, monotonic())
                raise
            if not latch.is_set() or context.disconnected:  # the client left, perhaps as its turn came
                gate.abandon(waiter, monotonic())
                return False, receive
            if waiter.state is WaiterState.ADMITTED:
                return True, receive
        self.manager.shed += 1
        if (rule.accept or self._accepts.match(scope, False)) and await accept_task(
            self.manager, scope, receive, send, context
        ):
            return False, receive
        retry = _jittered(gate.room.expected_wait(criticality, now))
        detail = f"More is asked than can be answered now, and {waiter.reason}; nothing was done. Try again later."
        await refuse(
            Problem(503, detail, retry_after=retry, extensions={"criticality": Criticality(criticality).name.lower()}),
            scope,
            send,
        )
        return False, receive

    def _criticality_of(self, scope: Scope, context: RequestContext) -> Criticality:
        actor = context.actor
        if actor.auth and self._roles:
            found = [self._roles[role] for role in actor.roles if role in self._roles]
            if found:
                return min(found)
        if self._header and self.manager.trusts(scope):
            told = [value for name, value in scope["headers"] if name == self._header]
            if len(told) == 1:  # of two, one may be the client's own
                return _BY_NAME.get(told[0][:32].decode("latin-1").strip().lower(), self._criticality)
        return self._criticality


_BY_NAME = {criticality.name.lower(): criticality for criticality in Criticality}


def _rule(rule: Any) -> Rule:
    return Rule(
        modes=frozenset(Mode(mode) for mode in rule.modes),
        full=Mode.FULL.value in rule.modes,
        criticality=None if rule.criticality is None else Criticality[rule.criticality.upper()],
        deadline=None if rule.deadline is None else float(rule.deadline),
        stream=rule.stream,
        accept=rule.accept,
    )


def _jittered(seconds: float) -> float:
    """So that those who were refused together don't come back together: the header has whole seconds only."""
    least = max(1, math.ceil(seconds))
    return float(least + random.randint(0, max(2, least)))
