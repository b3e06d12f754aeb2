"""The mode machine: what leads where, how fast, and who wins."""

from __future__ import annotations

from math import inf

import attrs
from hypothesis import given
from hypothesis import strategies as st

from deia_degradation.modes import Demand, Policy, Reading, Source, State, forget, step
from deia_hardening.context import Actor, Mode

OPERATOR = Actor("user", "ann", "token")


def shed(value: float) -> Reading:
    return Reading("shed ratio", value, 0.1)


def run(values: list[float], state: State | None = None, start: float = 0.0) -> tuple[State, list[tuple[float, Mode]]]:
    state = state or State()
    seen = []
    for index, value in enumerate(values):
        state, change = step(state, start + index, [shed(value)])
        if change is not None:
            seen.append((start + index, change.new))
    return state, seen


def test_three_high_ticks_in_five_lead_to_degraded():
    assert run([0.2, 0.0, 0.2, 0.0, 0.2])[1] == [(4.0, Mode.DEGRADED)]


def test_two_high_ticks_in_five_do_not():
    assert run([0.2, 0.0, 0.0] * 12)[1] == []


def test_half_of_the_bots_gone_acts_at_once():
    _, change = step(State(), 0.0, [Reading("bots gone", 0.5, 0.5, at_once=True)])
    assert change is not None
    assert change.new is Mode.DEGRADED
    assert "bots gone 0.5" in change.cause
    assert change.values == {"bots gone": 0.5}


def test_what_acts_at_once_does_not_wait_for_the_next_tick():
    gone = Reading("bots gone", 0.6, 0.5, at_once=True)
    state, change = step(State(), 0.0, [gone, shed(1.0)], tick=False)
    assert change is not None
    assert (state.automatic, change.cause) == (Mode.DEGRADED, "bots gone 0.6 ≥ 0.5")
    again, change = step(state, 0.1, [gone], tick=False)
    assert (again, change) == (state, None)
    assert step(State(), 0.0, [shed(1.0)], tick=False)[1] is None, "others count once a tick"
    assert step(State(), 0.0, [attrs.evolve(gone, value=0.4)], tick=False)[1] is None


def test_full_comes_back_after_thirty_calm_seconds():
    _, seen = run([0.2] * 3 + [0.0] * 40)
    assert seen == [(2.0, Mode.DEGRADED), (33.0, Mode.FULL)]


def test_a_value_between_half_and_whole_threshold_keeps_degraded():
    _, seen = run([0.2] * 3 + [0.06] * 200)
    assert seen == [(2.0, Mode.DEGRADED)]


def test_a_relapse_doubles_the_hold_up_to_its_cap():
    state, at, holds = State(), 0.0, []
    for _ in range(6):
        state, _ = run([0.2] * 3, state, at)
        assert state.mode is Mode.DEGRADED
        began = at + 3
        state, seen = run([0.0] * 302, state, began)
        holds.append(seen[0][0] - began)
        at = seen[0][0] + 10
        state = State(**{f: getattr(state, f) for f in ("mode", "automatic", "hold", "recovered")})
    assert holds == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]


def test_a_pin_beats_a_schedule_beats_a_lease_beats_the_signals():
    lease = Demand(Source.LEASE, Mode.DEGRADED, inf)
    schedule = Demand(Source.SCHEDULE, Mode.MAINTENANCE, inf)
    pin = Demand(Source.PIN, Mode.FULL, 100.0, OPERATOR, "testing")
    state, change = step(State(), 0.0, demands=[lease])
    assert (state.mode, change and change.cause) == (Mode.DEGRADED, "lease")
    state, change = step(state, 1.0, demands=[lease, schedule])
    assert state.mode is Mode.MAINTENANCE
    state, change = step(state, 2.0, demands=[lease, schedule, pin])
    assert state.mode is Mode.FULL
    assert change is not None
    assert (change.actor, change.reason) == (OPERATOR, "testing")
    state, change = step(state, 100.0, demands=[lease, schedule, pin])
    assert state.mode is Mode.MAINTENANCE
    assert change is not None
    assert change.cause == "schedule"


def test_a_lease_can_neither_force_full_nor_maintenance():
    for mode in (Mode.FULL, Mode.MAINTENANCE):
        state, change = step(State(), 0.0, demands=[Demand(Source.LEASE, mode, inf)])
        assert (state.mode, change) == (Mode.FULL, None)


def test_the_end_of_a_pin_evaluates_anew():
    pin = Demand(Source.PIN, Mode.FULL, 50.0, OPERATOR)
    state = State()
    for now in range(10):
        state, _ = step(state, float(now), [shed(1.0)], [pin])
    assert (state.mode, state.automatic) == (Mode.FULL, Mode.DEGRADED)
    state, change = step(state, 50.0, [shed(1.0)], [pin])
    assert state.mode is Mode.DEGRADED
    assert change is not None
    assert change.cause.startswith("pin ended; shed ratio")


def test_what_was_seen_before_a_pause_counts_no_more():
    state, _ = run([0.2, 0.2])
    _, seen = run([0.2, 0.0, 0.2], forget(state), 100.0)
    assert seen == []


@given(st.lists(st.floats(0.0, 1.0), max_size=600), st.integers(0, 2**32))
def test_it_never_flaps_within_the_hold_time(values: list[float], seed: int):
    policy = Policy()
    state, last_full, degraded_at = State(), None, None
    for now, value in enumerate(values):
        state, change = step(state, float(now), [shed(value), Reading("lag", value * 0.3, 0.1)], (), policy)
        assert state.mode is not Mode.MAINTENANCE
        if change is None:
            continue
        if change.new is Mode.FULL:
            assert degraded_at is not None
            assert now - degraded_at >= policy.hold
            last_full = now
        else:
            degraded_at = now
            if last_full is not None:
                assert now - last_full >= policy.needed - 1
