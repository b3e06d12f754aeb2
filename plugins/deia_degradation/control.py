"""The mode in force in this process: feeds the pure machine, keeps pins and leases, tells everybody.

What lowers service is done first and journaled after; what raises it is journaled first, also where a pin, a window
or a lease has merely ended. Pins live in the home's store and on its mapped page, so every worker of the machine
follows at its next request. A dead store or journal never holds up a lower mode.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from deia_degradation.events import ScalingChanged
from deia_degradation.modes import Demand, Policy, Reading, Source, State, Transition, forget, record, step
from deia_degradation.schedule import active, next_change
from deia_degradation.settings import DegradationSettings
from deia_hardening.events import ModeChanged
from deia_hardening.plugin import SYSTEM, Actor, Host, Mode
from deia_hardening.store import PAGE_WORD, PageState

if TYPE_CHECKING:
    from deia_hardening.store import HomePage

logger = logging.getLogger("deia_degradation")

PIN_KEY = "page/mode"
_PIN_FIELD = "mode"
_SEVERITY = {Mode.FULL: 0, Mode.DEGRADED: 1, Mode.MAINTENANCE: 2}
_NEVER = float("inf")


_RETRY, _RETRY_LONGEST = 0.1, 5.0
"""Seconds between two tries to journal a higher mode."""


class _NoPage:
    """Stands in for the home's page before the start."""

    words = (0,) * (PAGE_WORD + 1)

    def version(self) -> int:
        return 0

    def state(self) -> PageState:
        return PageState(0, {}, {}, {})


class ModeControl:
    """The mode of one app in this process. `mode` is read by every request; everything else takes a lock.

    Thread-safe. `look` is for the request path, `tick`, `pin` and `unpin` for the background loop.
    """

    mode: Mode = Mode.FULL
    due: float = 0.0
    """Monotonic time from which a request must call the manager's `look`: the earlier of the next two."""
    change: float = _NEVER
    """When a pin or window ends, or a window begins."""
    meet: float = 0.0
    """When the manager wants to hear of a request again."""
    page_version: int = 0

    def __init__(self, host: Host, settings: DegradationSettings) -> None:
        self.host = host
        self.page: HomePage | _NoPage = _NoPage()
        self.version: Callable[[], int] = self.page.version
        self.settings = settings
        self.state = State()
        self.readings: tuple[Reading, ...] = ()
        """As of the last tick."""
        self._policy = _policy(settings)
        self._lock = threading.Lock()
        self._pin: Demand | None = None
        self._leases: dict[str, Demand] = {}
        self._last_tick: float | None = None
        self._raising = False
        self.listeners: list[Callable[[Transition], None]] = []
        self.follow: Callable[[Mapping[str, Any]], None] | None = None
        """What is told of the page's fields when they have changed."""

    # -- settings and shared state -------------------------------------------------------------------------

    def adopt(self, settings: DegradationSettings) -> None:
        """Follow new settings from now on."""
        self.settings = settings
        self._policy = _policy(settings)
        self.evaluate()

    def reset(self) -> None:
        """Start over in this process (first start, or after a fork). Opens the page: not on a serving loop."""
        self.page = self.host.page
        self.page.open()
        self.version = self.page.version
        self._lock = threading.Lock()
        self._last_tick = None
        self._raising = False
        self.state = forget(self.state)

    def read_page(self) -> None:
        """Take the pin from the mapped page, where every worker of the machine sees it."""
        page = self.page
        self.page_version = page.version()
        state = page.state()
        self._take_pin(state.get(_PIN_FIELD))
        if self.follow is not None:
            self.follow(state.fields)

    def _take_pin(self, value: Any) -> None:
        pin = None
        if isinstance(value, Mapping):
            try:
                wall, now = self.host.clock.wall(), self.host.clock.monotonic()
                who = value.get("actor") or {}
                pin = Demand(
                    Source.PIN,
                    Mode(value["mode"]),
                    now + (float(value["until"]) - wall),
                    Actor(type=str(who.get("type", "user")), id=str(who.get("id", "")), auth="store"),
                    str(value.get("reason", "")),
                )
            except (KeyError, ValueError, TypeError, AttributeError):
                logger.warning("the stored pin %r can't be read and is ignored; pin the mode anew", value)
        with self._lock:
            self._pin = pin

    # -- looking and ticking -------------------------------------------------------------------------------

    def meet_at(self, at: float) -> None:
        """Have the manager's `look` called by the first request from then on."""
        self.meet = at
        self.due = min(self.change, at)

    def look(self) -> None:
        """Catch up with pins of other workers and with what ended. Quick, never raises, does no I/O."""
        told = False
        try:
            if self.page.version() != self.page_version:
                self.read_page()
                told = True  # whoever changed the page has journaled it, if it raises the mode
        except Exception:
            logger.exception("the home's page can't be read; the mode stays %s", self.mode.value)
        self.evaluate(journaled=told)

    def evaluate(self, readings: Iterable[Reading] = (), *, journaled: bool = False) -> None:
        """Look at pins, schedule and leases now, and at `readings` that act at once; others count at ticks only.

        A higher mode is in force once its record is durable, some milliseconds later, unless its cause is `journaled`.
        """
        now = self.host.clock.monotonic()
        with self._lock:
            found = self._step(now, tuple(readings), tick=False)
            if found is None:
                return
            state, transition = found
            if not journaled and _raises(transition):
                if not self._raising:
                    self._raising = True
                    self.host.runtime.submit(self._raise_soon)
                return
            self._commit(state, transition)
        self._tell(transition)

    async def _raise_soon(self) -> None:
        """Let a higher mode be in force as soon as the journal has it; again while the journal does not take it."""
        pause = _RETRY
        while self._raising and not await self._raise():
            await self.host.clock.sleep(pause)
            pause = min(pause * 2.0, _RETRY_LONGEST)
        self._raising = False
        self.evaluate()  # what ended meanwhile

    async def _raise(self) -> bool:
        """Journal the higher mode that is due, then commit. False when that is to be tried again."""
        with self._lock:
            wanted = self._higher()
        if wanted is None:
            return True
        if not await self._journal_first(wanted[1]):
            return False
        with self._lock:
            found = self._higher()
            if found is None or found[1].new is not wanted[1].new:  # somebody asked for another one meanwhile
                return False
            self._commit(*found)
        self._tell(found[1], journaled=True)
        return True

    def _higher(self) -> tuple[State, Transition] | None:
        found = self._step(self.host.clock.monotonic(), self.readings, tick=False)
        return found if found is not None and _raises(found[1]) else None

    async def tick(self, readings: Iterable[Reading]) -> None:
        """One look at the signals. On the background loop."""
        now = self.host.clock.monotonic()
        self.readings = tuple(readings)
        with self._lock:
            if self._last_tick is not None and now - self._last_tick > self._policy.window * self.settings.modes.tick:
                self.state = forget(self.state)
            self._last_tick = now
            found = self._step(now, self.readings, tick=True)
            if found is None:
                return
            state, transition = found
            raises = _raises(transition)
            if raises:  # what was seen counts; the mode has to wait for its record
                before = self.state
                self.state = attrs.evolve(state, mode=before.mode, source=before.source, since=before.since)
                if self._raising:
                    return
                self._raising = True
            else:
                self._commit(state, transition)
        if not raises:
            self._tell(transition)
            return
        await self._raise()  # the next tick tries again
        self._raising = False

    def _step(self, now: float, readings: tuple[Reading, ...], *, tick: bool) -> tuple[State, Transition] | None:
        demands = [demand for demand in (self._pin, self._scheduled(now), *self._leases.values()) if demand is not None]
        ends = [demand.until for demand in demands if demand.until > now]
        if self.settings.schedule:
            wall = self.host.clock.wall()
            change = next_change(self.settings.schedule, wall)
            if change is not None:
                ends.append(now + change - wall)
        self.change = min(ends, default=_NEVER)
        self.due = min(self.change, self.meet)
        self._leases = {name: demand for name, demand in self._leases.items() if demand.until > now}
        state, transition = step(self.state, now, readings, demands, self._policy, tick=tick)
        if transition is None:
            self.state = state
            return None
        return state, transition

    def _scheduled(self, now: float) -> Demand | None:
        if not self.settings.schedule:
            return None
        wall = self.host.clock.wall()
        found = active(self.settings.schedule, wall)
        if found is None:
            return None
        entry, end = found
        return Demand(Source.SCHEDULE, Mode(entry.mode), now + end - wall, SYSTEM, entry.reason)

    def _commit(self, state: State, transition: Transition) -> None:
        self.state = state
        self.mode = transition.new

    async def _journal_first(self, transition: Transition) -> bool:
        from deia_hardening.journal import JournalError

        try:
            await self.host.journal("degradation-events").append(record(transition)).durable()
        except (JournalError, OSError) as error:
            logger.error("the mode stays %s: its end could not be journaled: %s", transition.old.value, error)
            return False
        return True

    def _tell(self, transition: Transition, *, journaled: bool = False) -> None:
        if not journaled:
            try:
                self.host.journal("degradation-events").append(record(transition))
            except Exception:
                logger.exception("a change of mode could not be journaled; it is in force all the same")
        self.host.events.emit(
            ModeChanged(
                old=transition.old,
                new=transition.new,
                cause=transition.cause,
                actor=transition.actor,
                reason=transition.reason,
                change={"mode": (transition.old.value, transition.new.value)},
                level="info" if transition.new is Mode.FULL else "warning",
            )
        )
        if self.settings.disable_scaling and (transition.old is Mode.FULL or transition.new is Mode.FULL):
            self.host.events.emit(
                ScalingChanged(allowed=transition.new is Mode.FULL, reason=f"mode {transition.new.value}", actor=SYSTEM)
            )
        for listener in self.listeners:
            listener(transition)
        self.host.touched()

    # -- pins and leases -----------------------------------------------------------------------------------

    async def pin(self, mode: Mode, seconds: float | None, actor: Actor, reason: str) -> Demand:
        """Hold `mode` for `seconds` (None: the setting `modes.pin`), on every worker of the home.

        A FULL pin is journaled first; DEGRADED and MAINTENANCE act here first. Raises ValueError for a longer time
        than `modes.pin_max`, JournalError or StoreError when FULL could not be recorded (then nothing changed).
        """
        modes = self.settings.modes
        seconds = float(modes.pin) if seconds is None else seconds
        if not 0 < seconds <= modes.pin_max:
            raise ValueError(
                f"a pin lasts more than 0 s and at most {modes.pin_max} (modes.pin_max), not {seconds:g} s"
            )
        clock = self.host.clock
        pin = Demand(Source.PIN, mode, clock.monotonic() + seconds, actor, reason)
        value = {
            "mode": mode.value,
            "until": clock.wall() + seconds,
            "actor": {"type": actor.type, "id": actor.id},
            "reason": reason,
        }
        line = {"kind": "mode.pinned", "mode": mode.value, "seconds": seconds, "actor": actor.id, "reason": reason}
        raises = _SEVERITY[mode] < _SEVERITY[self.mode]
        if raises:
            await self.host.journal("degradation-events").append(line).durable()
            await self._store(value)
        with self._lock:
            self._pin = pin
        self.evaluate(journaled=raises)
        if not raises:
            try:
                self.host.journal("degradation-events").append(line)
            except Exception:
                logger.exception("the pin could not be journaled; it is in force all the same")
            try:
                await self._store(value)
            except Exception:
                logger.exception("the pin holds in this process only: the home's store did not take it")
        return pin

    async def unpin(self, actor: Actor, reason: str) -> bool:
        """End the pin now, on every worker; the signals decide again. False when there was none."""
        now = self.host.clock.monotonic()
        with self._lock:
            pin = self._pin
        if pin is None or pin.until <= now:
            return False
        line = {"kind": "mode.unpinned", "mode": pin.mode.value, "actor": actor.id, "reason": reason}
        await self.host.journal("degradation-events").append(line).durable()
        await self._store(None)
        with self._lock:
            self._pin = None
        self.evaluate(journaled=True)
        return True

    async def _store(self, value: Mapping[str, Any] | None) -> None:
        store = self.host.store
        if value is None:
            await store.delete(PIN_KEY)
        else:
            await store.put(PIN_KEY, msgspec.json.encode(value))

    def lease(self, name: str, seconds: float, reason: str) -> Demand:
        """Ask for DEGRADED until `seconds` from now, under `name`; the same name again prolongs it.

        Raises ValueError for what is no number.
        """
        if math.isnan(seconds):
            raise ValueError(f"the signal {name!r} must say for how many seconds it holds, not {seconds!r}")
        demand = Demand(Source.LEASE, Mode.DEGRADED, self.host.clock.monotonic() + seconds, SYSTEM, reason, name)
        with self._lock:
            self._leases[name] = demand
        self.evaluate()
        return demand

    def release(self, name: str) -> None:
        """End the lease called `name`; a higher mode is in force once its record is durable."""
        with self._lock:
            self._leases.pop(name, None)
        self.evaluate()

    @property
    def pinned(self) -> Demand | None:
        """The pin in force, or None."""
        pin = self._pin
        return pin if pin is not None and pin.until > self.host.clock.monotonic() else None

    @property
    def quiet(self) -> bool:
        """Whether nothing would be missed without ticks: FULL by itself and nobody asks for anything."""
        return self.state.automatic is Mode.FULL and self.mode is Mode.FULL and not self._leases


def _raises(transition: Transition) -> bool:
    return _SEVERITY[transition.new] < _SEVERITY[transition.old]


def _policy(settings: DegradationSettings) -> Policy:
    modes = settings.modes
    return Policy(modes.window, modes.needed, float(modes.hold), float(modes.hold_max), float(modes.relapse))
