"""`DegradationManager`: what the app and other plugins reach the plugin through.

It owns what outlives revisions: mode, gate, pools, watcher, sweeper. All of it is safe from any thread and loop. The
ticks on the background loop stop when nothing happens and start again with the next request.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any

import attrs

from deia_degradation.admission.gate import Gate
from deia_degradation.admission.limit import LimitPolicy
from deia_degradation.admission.room import RoomPolicy
from deia_degradation.clients import ClientQuotas
from deia_degradation.control import ModeControl
from deia_degradation.fallback.outgoing import Attempt
from deia_degradation.fallback.watch import Watcher
from deia_degradation.figures import measure, status
from deia_degradation.modes import Demand
from deia_degradation.pool.bot import BotChange
from deia_degradation.pool.budget import bounds_of
from deia_degradation.pool.pool import Pool
from deia_degradation.settings import AdmissionSettings, DegradationSettings, PoolSettings
from deia_degradation.signals import LoopLag, Machine, MachineReader, Observed, readings
from deia_hardening.context import context_variable
from deia_hardening.events import BotChanged
from deia_hardening.peers import parse_networks
from deia_hardening.plugin import SYSTEM, Actor, Completion, Host, Mode, Scope, Target

logger = logging.getLogger("deia_degradation")

_SWEEP = 0.05
_PROBE_EVERY = 0.25


@attrs.frozen
class ScalingAdvice:
    """What the app's scaler is told.

    `suggestion` is "up", "down" or "hold"; `allowed` says whether to act on it now; `cooldown` is how many seconds
    remain since the last time somebody did; `signals` are the figures behind it.
    """

    suggestion: str
    allowed: bool
    cooldown: float
    reason: str
    signals: Mapping[str, float]


class DegradationManager:
    """Modes, admission and pools of one app: `current(DegradationManager)`."""

    def __init__(self, host: Host, settings: DegradationSettings) -> None:
        self.host = host
        self.settings = settings
        self.control = ModeControl(host, settings)
        self.gate = Gate(_limit(settings.admission), _room(settings.admission), settings.admission.streams)
        self.watcher = Watcher(host)
        self.lag = LoopLag(host.clock.monotonic)
        self.clients = ClientQuotas(bounds_of(settings.admission.client_quota), settings.admission.clients, ())
        self.arrived = 0
        """Requests so far, the refused ones included."""
        self.shed = 0
        self.ticking = False
        self.stopped = False
        self._machine = MachineReader(host.home)
        self._lock = threading.Lock()
        self._sweeping = False
        self._process = os.getpid()
        self._checking: Completion[None] | None = None
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

        For plugins and the app's own code. It can neither force FULL nor MAINTENANCE. Any thread, never blocks.
        """
        self.control.lease(name, seconds, reason)
        self.wake()

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
                )
            return pool

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
        self.wake()
        self.host.touched()

    # -- scaling -------------------------------------------------------------------------------------------

    def evaluate(self) -> ScalingAdvice:
        """What a scaler should do now, from use of the limit, waiting and the pools. Cheap, any thread."""
        gate, scaling = self.gate, self.settings.scaling
        use = gate.in_flight / max(1, gate.limit.limit)
        pools = {name: pool.healthy_share(monotonic()) for name, pool in list(self._pools.items())}
        signals = {
            "in_flight": float(gate.in_flight),
            "limit": float(gate.limit.limit),
            "use": use,
            "waiting": float(gate.room.size),
            "streams": float(gate.streams),
            "loop_lag": self.lag.p99(),
            **{f"healthy.{name}": share for name, share in pools.items()},
        }
        if gate.room.size:
            suggestion, reason = "up", f"{gate.room.size} requests wait"
        elif use >= scaling.high:
            suggestion, reason = "up", f"{use:.0%} of the learned limit is in use"
        elif use <= scaling.low:
            suggestion, reason = "down", f"{use:.0%} of the learned limit is in use"
        else:
            suggestion, reason = "hold", f"{use:.0%} of the learned limit is in use"
        cooldown = max(0.0, self._scaled_at + float(scaling.cooldown) - monotonic())
        allowed = self.scaling_allowed and cooldown == 0.0
        if not self.scaling_allowed:
            reason = f"{reason}; not in mode {self.control.mode.value}"
        return ScalingAdvice(suggestion, allowed, cooldown, reason, signals)

    def scaled(self) -> None:
        """The app's scaler followed a suggestion: the cooldown begins."""
        self._scaled_at = monotonic()

    # -- ticks and sweeps ----------------------------------------------------------------------------------

    def trusts(self, scope: Scope) -> bool:
        """Whether this request's peer is a trusted proxy."""
        return self.clients.trusts(scope)

    def wake(self) -> None:
        """Something happens: see to it that signals are read, and this loop is known."""
        self.lag.register()
        if self.ticking:
            return
        with self._lock:
            begin = not (self.ticking or self.stopped)
            self.ticking = self.ticking or begin
        if begin:
            self.host.runtime.submit(self._tick)

    async def _tick(self) -> None:
        clock = self.host.clock
        modes = self.settings.modes
        seen, quiet_since = self.arrived, clock.monotonic()
        shed = self.shed
        counted = self.arrived
        self.lag.forget()
        while not self.stopped:
            try:
                modes = self.settings.modes
                tick = float(modes.tick)
                end = clock.monotonic() + tick
                while True:
                    self.lag.probe()
                    left = end - clock.monotonic()
                    if left <= 0:
                        break
                    await clock.sleep(min(_PROBE_EVERY, left))
                arrived, refused = self.arrived, self.shed
                observed = await self.observe(arrived - counted, refused - shed)
                counted, shed = arrived, refused
                await self.control.tick(readings(observed, self.settings.signals))
            except Exception:
                logger.exception("a look at the signals failed; the mode stays %s", self.control.mode.value)
                await clock.sleep(float(self.settings.modes.tick))
            now = clock.monotonic()
            if self.arrived != seen:
                seen, quiet_since = self.arrived, now
            idle = now - quiet_since >= modes.idle
            if idle and self.control.quiet and not self.gate.in_flight and not self.gate.room.size:
                break
        self.ticking = False
        if self.arrived != seen and not self.stopped:  # a request came as this ended
            self.wake()

    async def observe(self, arrived: int, shed: int) -> Observed:
        """The figures of one tick."""
        signals = self.settings.signals
        now = self.host.clock.monotonic()
        machine = Machine()
        if signals.memory or signals.cpu or signals.disk:
            machine = await self.host.blocking(self._machine.read)
        gone = max((1.0 - pool.healthy_share(now) for pool in list(self._pools.values())), default=0.0)
        return Observed(
            arrived=arrived,
            shed=shed,
            wait=self.gate.read_smallest_wait(),
            bots_gone=gone,
            loop_lag=self.lag.p99(),
            threads=self.lag.busy_threads(),
            trouble=self._trouble() if signals.store else 0,
            machine=machine,
        )

    def _trouble(self) -> int:
        handle = getattr(self.host, "home_handle", None)
        if handle is None:
            return 0
        return sum(not journal.health().ok for journal in handle.journals())

    def sweep_soon(self) -> None:
        """Somebody waits: see to it that those whose time is over are told."""
        with self._lock:
            begin, self._sweeping = not self._sweeping, True
        if begin:
            self.host.runtime.submit(self._sweep)

    async def _sweep(self) -> None:
        while True:
            await self.host.clock.sleep(_SWEEP)
            left = self.gate.sweep(monotonic())
            if not left:
                self._sweeping = False
                if self.gate.room.size:  # one came in just now
                    self.sweep_soon()
                return

    async def check_bots(self) -> None:
        """Ask the bots of the pools whose settings want active checks, for as long as this runs."""
        clock = self.host.clock
        while not self.stopped:
            wanted = [pool for pool in list(self._pools.values()) if pool.settings.check.every]
            if not wanted:
                return
            now = clock.monotonic()
            for pool in wanted:
                if now >= pool.checked_at + pool.settings.check.every:
                    pool.checked_at = now
                    try:
                        await pool.checker.once()
                    except Exception:
                        logger.exception("the active checks of pool %s failed", pool.name)
            due = min(pool.checked_at + pool.settings.check.every for pool in wanted)
            await clock.sleep(max(0.05, due - clock.monotonic()))

    def begin_checks(self) -> None:
        """Run the active checks, if any pool wants them and they don't run."""
        if self._checking is not None and not self._checking.done():
            return
        if any(pool.settings.check.every for pool in self._pools.values()):
            self._checking = self.host.runtime.submit(self.check_bots)

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
            for pool in self._pools.values():
                pool.reset()
        self.stopped = self.ticking = self._sweeping = False
        self._checking = None
        self.watcher.reset()
        self.control.reset()
        self.control.read_page()
        self._admit(proxies)
        for name, given in self.settings.pools.items():
            self.pool_for(name, given)
        self.control.evaluate()
        measure(self)

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
        """End ticks and sweeps, and what the pools opened."""
        self.stopped = True
        for pool in self._pools.values():
            await pool.stop_upstreams()

    def _admit(self, proxies: tuple[str, ...]) -> None:
        admission = self.settings.admission
        self.clients = ClientQuotas(bounds_of(admission.client_quota), admission.clients, parse_networks(proxies))

    async def adopt(self, settings: DegradationSettings, proxies: tuple[str, ...]) -> None:
        """Follow new settings: bounds, pools, rules of modes. What was learned stays."""
        before = self.settings
        self.settings = settings
        self._disabled = frozenset(settings.disable_features)
        admission = settings.admission
        self.gate.adopt(_limit(admission), _room(admission), admission.streams)
        if admission.client_quota != before.admission.client_quota or self.clients.networks != parse_networks(proxies):
            self._admit(proxies)
        for name in [name for name in self._pools if name not in settings.pools]:
            await self._pools.pop(name).stop_upstreams()
        for name, pool_settings in settings.pools.items():
            pool = self.pool_for(name, pool_settings)
            pool.adopt(pool_settings)
            await pool.follow_upstreams()
        self.begin_checks()
        self.control.adopt(settings)


def _limit(settings: AdmissionSettings) -> LimitPolicy:
    return LimitPolicy(
        initial=float(settings.initial), minimum=float(settings.minimum), maximum=float(settings.maximum)
    )


def _room(settings: AdmissionSettings) -> RoomPolicy:
    return RoomPolicy(places=settings.places, reserve=float(settings.reserve))
