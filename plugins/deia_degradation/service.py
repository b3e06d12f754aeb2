"""`DegradationManager`: what the app and other plugins reach the plugin through.

It owns what outlives revisions: mode, gates, pools, watcher, ticks. All of it is safe from any thread and loop.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any

from deia_degradation import pauses
from deia_degradation.admission.endpoints import SyncEndpoints
from deia_degradation.admission.gate import Gate
from deia_degradation.admission.limit import LimitPolicy
from deia_degradation.admission.room import RoomPolicy
from deia_degradation.admission.streaming import StreamRoutes
from deia_degradation.admission.threads import ThreadGates
from deia_degradation.clients import ClientQuotas
from deia_degradation.control import ModeControl
from deia_degradation.drains import FIELD as DRAINED
from deia_degradation.drains import Drains
from deia_degradation.fallback.outgoing import Attempt
from deia_degradation.fallback.watch import Watcher
from deia_degradation.figures import measure, status
from deia_degradation.modes import Demand
from deia_degradation.pool.bot import BotChange
from deia_degradation.pool.budget import bounds_of
from deia_degradation.pool.ledger import Accounts, Ledger
from deia_degradation.pool.pool import Pool
from deia_degradation.rests import FIELD as RESTING
from deia_degradation.rests import Rests
from deia_degradation.scaling import ScalingAdvice, advise
from deia_degradation.settings import AdmissionSettings, DegradationSettings, PoolSettings
from deia_degradation.signals import LoopLag, MachineReader, bots_gone
from deia_degradation.slot import OpenStream
from deia_degradation.ticks import Ticks
from deia_hardening import streams
from deia_hardening.context import context_variable
from deia_hardening.events import BotChanged
from deia_hardening.peers import parse_networks
from deia_hardening.plugin import SYSTEM, Actor, Exchange, Host, Mode, Scope, Target

logger = logging.getLogger("deia_degradation")

_MEET = 0.25
"""Seconds between two requests that are looked at more closely."""
_GONE = frozenset({"ejected", "panic", "removed"})
"""Changes of a bot after which fewer can serve."""


class DegradationManager:
    """Modes, admission and pools of one app: `current(DegradationManager)`."""

    def __init__(self, host: Host, settings: DegradationSettings) -> None:
        self.host = host
        self.settings = settings
        self.control = ModeControl(host, settings)
        self.drains = Drains(self)
        self.rests = Rests(self)
        self.ledger = Ledger()
        self.gate = Gate(_limit(settings.admission), _room(settings.admission), settings.admission.streams)
        self.watcher = Watcher(host)
        self.lag = LoopLag(host.clock.monotonic)
        self._admit(())
        self.beside = 0
        """Requests so far that did not come in at once: they waited, were refused, are streams, run in threads."""
        self.shed = 0
        self.sync_endpoints = SyncEndpoints()
        self.threads = ThreadGates(self.gate, _limit(settings.admission), _room(settings.admission))
        self.stream_routes = StreamRoutes()
        self.open_streams: dict[Exchange, OpenStream] = {}
        """The streams that are open now; put in and taken out on any serving loop, each in one step."""
        self.machine = MachineReader(host.home)
        self.ticks = Ticks(self)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._pools: dict[str, Pool] = {}
        self._scaled_at = float("-inf")
        self._disabled = frozenset(settings.disable_features)

    # -- modes ---------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """The mode in force in this process."""
        self.control.look()
        return self.control.mode

    async def pin(
        self, mode: Mode | str, *, seconds: float | None = None, actor: Actor = SYSTEM, reason: str = ""
    ) -> Demand:
        """Hold `mode` on every worker of this home for `seconds` (the setting `modes.pin` without). From any loop.

        Raises ValueError for an unknown mode or a time beyond `modes.pin_max`.
        """
        return await self.host.runtime.run(self.control.pin, Mode(mode), seconds, actor, reason)

    async def unpin(self, *, actor: Actor = SYSTEM, reason: str = "") -> bool:
        """End the pin; the signals decide again. False when there was none. From any loop."""
        return await self.host.runtime.run(self.control.unpin, actor, reason)

    def signal(self, name: str, *, seconds: float, reason: str = "") -> None:
        """Ask for DEGRADED under `name` for `seconds`; the same name again prolongs it, `release` ends it.

        For plugins and the app's own code. It can neither force FULL nor MAINTENANCE. Any thread, never blocks. Raises
        ValueError for seconds that are no number.
        """
        self.control.lease(name, seconds, reason)
        self.ticks.wake()

    def release(self, name: str) -> None:
        """End the leased signal called `name`."""
        self.control.release(name)

    @property
    def scaling_allowed(self) -> bool:
        """Whether the app may scale now."""
        return self.mode is Mode.FULL or not self.settings.disable_scaling

    def masked(self, name: str) -> bool:
        """Whether feature `name` is off in the mode of this request (the core's `FeatureMask`)."""
        if name not in self._disabled:
            return False
        context = context_variable.get()
        mode = self.control.mode if context is None else context.mode
        return mode is not Mode.FULL

    # -- pools ---------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        """The pool called `name` in the settings. Raises LookupError that says which there are."""
        found = self._pools.get(name)
        if found is None:
            known = ", ".join(sorted(self._pools)) or "none"
            raise LookupError(f"there is no pool {name!r} in the section 'degradation: pools:'; there are: {known}")
        return found

    @property
    def pools(self) -> Mapping[str, Pool]:
        """All pools by name."""
        return dict(self._pools)

    def attempt(
        self, pool: str, *, tokens: float = 0.0, money: float = 0.0, key: str | None = None,
        first_within: float | None = None, stall: float | None = None,
    ) -> Attempt:  # fmt: skip
        """One outgoing call to one bot: `async with manager.attempt("llm", tokens=800) as a: … a.bot …`.

        It is judged by how the block ends; `a.first()`, `a.usage(…)` and `a.headers(…)` tell more. There is no second
        try: `pool(name).call(send)` and `pool(name).attempts()` fall back to another bot. Raises `NoBotLeft` on entry
        when no bot can take the call, LookupError for an unknown pool, `TooSlow` when a time limit cut the block.
        """
        return Attempt(
            self.pool(pool).attempts(
                tokens=tokens, money=money, key=key, first_within=first_within, stall=stall, once=True
            )
        )

    def pool_for(self, name: str, settings: PoolSettings) -> Pool:
        """The pool of this name, made from `settings` when there is none yet. No I/O."""
        with self._lock:
            pool = self._pools.get(name)
            if pool is None:
                pool = self._pools[name] = Pool(
                    name,
                    settings,
                    clock=self.host.clock.monotonic,
                    home=self.host.home,
                    effects=self._has_effects,
                    listener=lambda change: self._bot_changed(name, change),
                    watcher=self.watcher,
                    look=self.glance,
                    ledger=self.ledger,
                    rested=lambda key, seconds: self.rests.tell(name, key, seconds),
                )
            return pool

    def glance(self) -> None:
        """Catch up with what other workers pinned and drained. For outgoing calls, which may come without requests."""
        if self.control.version() != self.control.page_version:
            self.control.look()
        if self.ledger.used:  # the ticks put it on disk
            self.ticks.wake()

    def _has_effects(self, scope: Scope) -> bool:
        context = context_variable.get()
        return bool(context is not None and context.revision.effects.match(scope))

    def _bot_changed(self, pool: str, change: BotChange) -> None:
        try:
            self.host.journal("degradation-events").append(
                {"kind": "bot.changed", "pool": pool, "bot": change.bot, "state": change.state, "reason": change.reason}
            )
        except Exception:
            logger.exception("a change of bot %s could not be journaled; it is in force all the same", change.bot)
        target = Target("bot", change.bot)
        self.host.events.emit(
            BotChanged(
                pool=pool, bot=change.bot, state=change.state, target=target, reason=change.reason, actor=SYSTEM,
                level="info" if change.state in ("added", "restored") else "warning",
            )
        )  # fmt: skip
        if change.state == "added" and (found := self._pools.get(pool)) is not None:
            self.drains.apply(pool, found)
        if change.state in _GONE:  # half of them gone acts at once
            self.control.evaluate(bots_gone(self.bots_gone(), self.settings.signals))
        self.ticks.wake()
        self.host.touched()

    def bots_gone(self) -> float:
        """The part of the worst pool's weight that can't serve now."""
        now = self.host.clock.monotonic()
        return max((1.0 - pool.healthy_share(now) for pool in self.pools.values()), default=0.0)

    # -- scaling -------------------------------------------------------------------------------------------

    def evaluate(self) -> ScalingAdvice:
        """What a scaler should do now, from use of the limits, waiting and the pools. Cheap, any thread."""
        return advise(self, self._scaled_at)

    def scaled(self) -> None:
        """The app's scaler followed a suggestion: the cooldown begins."""
        self._scaled_at = monotonic()

    # -- requests ------------------------------------------------------------------------------------------

    def trusts(self, scope: Scope) -> bool:
        """Whether this request's peer is a trusted proxy."""
        return self.clients.trusts(scope)

    @property
    def arrived(self) -> int:
        """Requests so far, the refused ones included."""
        return self.gate.direct + self.beside

    def look(self, scope: Scope) -> None:
        """Catch up with the mode, and know the loop that this is called on and this app. Requests call it when
        `ModeControl.due` or its page says so."""
        control = self.control
        now = monotonic()
        if now >= control.change or control.version() != control.page_version:
            control.look()
        if now >= control.meet:
            self.lag.register()
            self.sync_endpoints.look(scope.get("app"))
            self.ticks.wake()
            control.meet_at(now + _MEET)

    def status(self) -> dict[str, Any]:
        """Everything an operator wants to see at one look."""
        return status(self)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self, proxies: tuple[str, ...]) -> None:
        """Begin, or begin again (after a stop or a fork). Opens the page: not on a serving loop."""
        self._lock = threading.Lock()
        if self._process != os.getpid():
            self._process = os.getpid()
            self.gate.reset()
            self.threads.reset()
            self.open_streams.clear()
            for pool in self._pools.values():
                pool.reset()
        streams.arm(self.ticks)
        self.ticks.reset()
        self.watcher.reset()
        self.rests.reset()
        self.control.reset()
        self.control.read_page()
        self._admit(proxies)
        for name, given in self.settings.pools.items():
            self.pool_for(name, given)
        self.ledger.close()  # in a forked child they are the parent's
        self.share_budgets()
        self.control.follow = self._follow
        self._follow(self.control.page.state().fields)
        self.control.evaluate()
        measure(self)

    def _follow(self, fields: Mapping[str, Any]) -> None:
        """What other workers, or an earlier life, have put on the home's page."""
        self.drains.follow(fields.get(DRAINED))
        self.rests.follow(fields.get(RESTING))

    def share_budgets(self) -> None:
        """Count budgets and quotas together with the other workers of the machine. Opens files."""
        self.ledger.open(self.host.home / "state" / "budgets")

    async def load_pin(self) -> None:
        """Take a pin from the store where the page does not have it (the page was lost with the machine's start)."""
        if self.control.page.version():
            return
        if not await self.host.blocking((self.host.home / "state" / "store.db").exists):
            return
        try:
            await self.host.store.start()
            self.control.look()
        except Exception:
            logger.exception("the home's store can't be read; a pin that is in it is not in force here")

    async def stop(self) -> None:
        """End what runs by the clock, and what the pools opened."""
        self.ticks.stop()
        pauses.release(self)
        streams.disarm(self.ticks)
        for pool in self._pools.values():
            await pool.stop_upstreams()
        await self.sync_budgets()
        self.ledger.close()

    async def sync_budgets(self) -> None:
        """Put on disk what budgets have counted, for the machine's own crash: a process that ends loses nothing."""
        if self.ledger.used:
            try:
                await self.host.blocking(self.ledger.sync)
            except OSError as error:
                logger.error("the budgets are not on disk: %s", error)

    def _admit(self, proxies: tuple[str, ...]) -> None:
        admission = self.settings.admission
        bounds = bounds_of(admission.client_quota)
        accounts = Accounts(1, admission.clients)
        if bounds.any:
            accounts = self.ledger.accounts("clients", 1, admission.clients)
        self.clients = ClientQuotas(bounds, accounts, parse_networks(proxies))

    async def adopt(self, settings: DegradationSettings, proxies: tuple[str, ...]) -> None:
        """Follow new settings: bounds, pools, rules of modes. What was learned stays."""
        before = self.settings
        self.settings = settings
        self._disabled = frozenset(settings.disable_features)
        admission = settings.admission
        self.gate.adopt(_limit(admission), _room(admission), admission.streams)
        self.threads.adopt(_limit(admission), _room(admission), admission.streams)
        if admission != before.admission or self.clients.networks != parse_networks(proxies):
            self._admit(proxies)
        for name in [name for name in self._pools if name not in settings.pools]:
            await self._pools.pop(name).stop_upstreams()
        for name, pool_settings in settings.pools.items():
            pool = self.pool_for(name, pool_settings)
            pool.adopt(pool_settings)
            await pool.follow_upstreams()
            self.drains.apply(name, pool)
        await self.host.blocking(self.share_budgets)
        self.ticks.begin_checks()
        self.control.adopt(settings)


def _limit(settings: AdmissionSettings) -> LimitPolicy:
    return LimitPolicy(
        initial=float(settings.initial), minimum=float(settings.minimum), maximum=float(settings.maximum)
    )


def _room(settings: AdmissionSettings) -> RoomPolicy:
    return RoomPolicy(places=settings.places, reserve=float(settings.reserve))
