"""The state machine over FULL, DEGRADED and MAINTENANCE: signals and time in, the mode and its cause out.

It is pure: whoever calls `step` brings the time (monotonic seconds) and the readings. Precedence is operator's
pin, then schedule, then leased signal, then the automatic verdict, which never says MAINTENANCE. The automatic
part has hysteresis (half the threshold, a hold time that doubles on relapse), so it can't flap.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import attrs

from deia_hardening.context import SYSTEM, Actor, Mode


@attrs.frozen
class Policy:
    """How fast the automatic verdict moves. Times are seconds."""

    window: int = 5
    """Ticks that are looked back at."""
    needed: int = 3
    """High ticks within `window` that lead to DEGRADED."""
    hold: float = 30.0
    """How long everything must be calm before FULL comes back."""
    hold_max: float = 300.0
    relapse: float = 300.0
    """A new DEGRADED within this time after FULL came back doubles the hold."""


@attrs.frozen
class Reading:
    """One signal at one tick. High at or above `threshold`, calm below half of it (or below `calm_below`).

    `at_once` makes a high reading act without waiting for further ticks (half of the bots are gone).
    """

    name: str
    value: float
    threshold: float
    at_once: bool = False
    calm_below: float | None = None

    @property
    def high(self) -> bool:
        return self.value >= self.threshold

    @property
    def calm(self) -> bool:
        return self.value < (self.threshold / 2 if self.calm_below is None else self.calm_below)


class Source(enum.IntEnum):
    """Who asks for a mode; the greater one wins."""

    AUTOMATIC = 0
    LEASE = 1
    SCHEDULE = 2
    PIN = 3


@attrs.frozen
class Demand:
    """A mode that somebody asks for until `until` (monotonic seconds; infinity: until it is taken back)."""

    source: Source
    mode: Mode
    until: float
    actor: Actor = SYSTEM
    reason: str = ""
    name: str = ""


@attrs.frozen
class State:
    """Everything the machine remembers."""

    mode: Mode = Mode.FULL
    """The mode in force."""
    source: Source = Source.AUTOMATIC
    automatic: Mode = Mode.FULL
    """What it would be without demands: FULL or DEGRADED."""
    since: float = 0.0
    """When `mode` began."""
    history: Mapping[str, tuple[bool, ...]] = attrs.field(factory=dict)
    calm_since: float | None = None
    hold: float = 0.0
    recovered: float | None = None
    """When the automatic verdict last went back to FULL."""
    cause: str = ""
    demand: Demand | None = None


@attrs.frozen
class Transition:
    """The mode changed: from, to, why, with which values, by whom."""

    old: Mode
    new: Mode
    cause: str
    actor: Actor
    reason: str
    values: Mapping[str, float]


def winning(demands: Iterable[Demand], now: float) -> Demand | None:
    """The demand in force at `now`: the highest source; within one, the most restrictive mode."""
    best: Demand | None = None
    for demand in demands:
        if demand.until <= now or (demand.source is Source.LEASE and demand.mode is not Mode.DEGRADED):
            continue  # a lease may only degrade: FULL would hide trouble, MAINTENANCE is an operator's word
        if best is None or (demand.source, _SEVERITY[demand.mode]) > (best.source, _SEVERITY[best.mode]):
            best = demand
    return best


_SEVERITY = {Mode.FULL: 0, Mode.DEGRADED: 1, Mode.MAINTENANCE: 2}


def step(
    state: State,
    now: float,
    readings: Iterable[Reading] = (),
    demands: Iterable[Demand] = (),
    policy: Policy = Policy(),
    *,
    tick: bool = True,
) -> tuple[State, Transition | None]:
    """The next state, and the transition if the mode in force changed.

    With `tick=False` only the demands are looked at (a pin was set, a lease ended), and readings that act at once;
    all others count once a tick.
    """
    readings = tuple(readings)
    if tick:
        state = _automatic(state, now, readings, policy)
    elif state.automatic is Mode.FULL:
        for reading in readings:
            if reading.at_once and reading.high:
                state = _degraded(state, now, _said(reading), state.history, policy)
                break
    demand = winning(demands, now)
    if demand is None:
        mode, source, actor, reason = state.automatic, Source.AUTOMATIC, SYSTEM, ""
        cause = state.cause or "signals calm"
        if state.source is not Source.AUTOMATIC:
            cause = f"{state.source.name.lower()} ended; {cause}"
    else:
        mode, source, actor, reason = demand.mode, demand.source, demand.actor, demand.reason
        cause = f"{source.name.lower()} {demand.name}".rstrip()
    if mode is state.mode:
        return attrs.evolve(state, source=source, demand=demand), None
    values = {reading.name: reading.value for reading in readings}
    transition = Transition(state.mode, mode, cause, actor, reason, values)
    return attrs.evolve(state, mode=mode, source=source, since=now, demand=demand), transition


def _automatic(state: State, now: float, readings: tuple[Reading, ...], policy: Policy) -> State:
    history: dict[str, tuple[bool, ...]] = {}
    culprit = ""
    for reading in readings:
        seen = (*state.history.get(reading.name, ()), reading.high)[-policy.window :]
        history[reading.name] = seen
        if reading.high and (reading.at_once or sum(seen) >= policy.needed):
            culprit = culprit or _said(reading)
    calm = all(reading.calm for reading in readings)
    calm_since = (state.calm_since if state.calm_since is not None else now) if calm else None
    if state.automatic is Mode.FULL:
        if not culprit:
            return attrs.evolve(state, history=history, calm_since=calm_since)
        return _degraded(state, now, culprit, history, policy)
    if calm_since is not None and now - calm_since >= state.hold:
        return attrs.evolve(
            state,
            automatic=Mode.FULL,
            history={},
            calm_since=calm_since,
            recovered=now,
            cause=f"all signals below half their threshold for {state.hold:g} s",
        )
    return attrs.evolve(state, history=history, calm_since=calm_since)


def _said(reading: Reading) -> str:
    return f"{reading.name} {reading.value:.3g} ≥ {reading.threshold:.3g}"


def _degraded(state: State, now: float, culprit: str, history: Mapping[str, tuple[bool, ...]], policy: Policy) -> State:
    """The automatic verdict falls; soon after the last time, it holds twice as long."""
    relapsed = state.recovered is not None and now - state.recovered < policy.relapse
    hold = min(max(state.hold, policy.hold) * 2, policy.hold_max) if relapsed else policy.hold
    return attrs.evolve(state, automatic=Mode.DEGRADED, history=history, calm_since=None, hold=hold, cause=culprit)


def forget(state: State) -> State:
    """The state after a pause without ticks: what was seen before it says nothing about now."""
    return attrs.evolve(state, history={}, calm_since=None)


def record(transition: Transition) -> dict[str, Any]:
    """A transition as a line of the journal."""
    return {
        "kind": "mode.changed",
        "old": transition.old.value,
        "new": transition.new.value,
        "cause": transition.cause,
        "actor": transition.actor.id,
        "reason": transition.reason,
        "values": {name: round(value, 6) for name, value in transition.values.items()},
    }


def describe(demand: Demand | None, now: float) -> dict[str, Any] | None:
    """A demand for people: who, what, why, for how much longer."""
    if demand is None:
        return None
    found = attrs.asdict(demand, recurse=False, filter=lambda attribute, _: attribute.name in ("reason", "name"))
    found.update(mode=demand.mode.value, source=demand.source.name.lower(), actor=demand.actor.id)
    found["seconds_left"] = None if demand.until == inf else round(max(0.0, demand.until - now), 3)
    return found
