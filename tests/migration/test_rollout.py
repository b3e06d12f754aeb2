"""The rollout's machine: its laws hold in every order of events and after a crash at every record."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.settings import Ratio, Seconds
from deia_migration.judge import Decision
from deia_migration.plan import Limits, Plan, Step
from deia_migration.rollout import Move, Phase, Rollout, Seen, apply, next_move, promote_by_hand, replay, rollback_move

PLAN = Plan(
    steps=(
        Step(weight=Ratio("5%"), pause=Seconds("10s")),
        Step(weight=Ratio("25%"), pause=Seconds("10s"), until="judged"),
        Step(weight=Ratio("50%"), gate="manual"),
    ),
    bake=Seconds("60s"),
)


def begun(plan: Plan = PLAN) -> Rollout:
    return Rollout(id="r1", plan=plan, candidate="v2", started=0.0, since=0.0)


def take(state: Rollout, move: Move, at: float) -> Rollout:
    return apply(state, move.event, move.fields, at)


def good(now: float, **changes: object) -> Seen:
    return attrs.evolve(Seen(now=now, ready=True, tests="", mirror=""), **changes)  # type: ignore[arg-type]


def test_a_good_rollout_climbs_every_step_and_retires_the_old_version() -> None:
    state, now, log = begun(), 0.0, []
    while not state.phase.over and now < 1_000:
        decision = Decision.PROMOTE if now > 30 else Decision.HOLD
        move = next_move(state, good(now, decision=decision))
        if move is None and state.step == 2 and not state.gate_open and state.phase is Phase.RAMPING:
            move = Move(event="gate")
        if move is None:
            now += 1
            continue
        log.append((move.event, round(state.weight, 3)))
        state = take(state, move, now)
    assert state.phase is Phase.DONE
    assert [event for event, _ in log] == [
        *("ready", "tested", "mirrored", "weight", "weight", "certified", "weight", "gate", "weight"),
        *("promoted", "retired"),
    ]


def test_no_weight_before_ready_and_tested() -> None:
    state = begun()
    assert next_move(state, Seen(now=1.0)) is None
    state = apply(state, "ready", {}, 1.0)
    assert next_move(state, Seen(now=1.5, ready=True)) is None
    failed = next_move(state, Seen(now=2.0, ready=True, tests="GET /health answered 500"))
    assert failed is not None
    assert failed.event == "rollback"
    assert "500" in failed.reason


def test_a_pause_and_a_gate_never_suspend_the_judge() -> None:
    state = replay(begun(), [("weight", {"weight": 0.5, "step": 2}, 1.0), ("paused", {}, 2.0)])
    assert next_move(state, good(3.0)) is None
    move = next_move(state, good(3.0, decision=Decision.ROLL_BACK))
    assert move is not None
    assert move.event == "rollback"


@pytest.mark.parametrize("promote", ["manual", "judged", "timed"])
def test_without_a_holdback_nobody_is_asked_too_late(promote: str) -> None:
    plan = Plan(steps=(Step(weight=Ratio("50%")),), holdback=Ratio("0%"), bake=Seconds("1m"), promote=promote)
    state = Rollout(id="r", plan=plan, candidate="v2", phase=Phase.RAMPING, step=0, weight=0.5)
    move = next_move(state, Seen(now=1.0, ready=True))
    assert move is not None
    state = apply(state, move.event, move.fields, 1.0)
    assert state.phase is Phase.BAKING
    assert state.weight == (1.0 if promote == "timed" else 0.5)  # 100% only after the person or the judge
    move = next_move(state, Seen(now=120.0, ready=True))
    assert (move is not None) == (promote == "timed")


def test_a_rollback_latches() -> None:
    state = take(begun(), rollback_move("worse", cut=False), 1.0)
    assert state.latched
    for event, fields in [("weight", {"weight": 0.5}), ("promoted", {}), ("gate", {}), ("resumed", {})]:
        later = apply(state, event, fields, 2.0)
        assert later.weight == 0.0
        assert later.phase is Phase.ROLLING_BACK
    assert "new rollout" in str(promote_by_hand(state, full=True))


def test_at_full_weight_only_hard_guards_act() -> None:
    state = replay(begun(), [("weight", {"weight": 0.5, "step": 2}, 1.0), ("promoted", {}, 2.0)])
    busy = good(3.0, decision=Decision.ROLL_BACK, idle=False)
    assert next_move(state, busy) is None
    for change in ({"crashed": "signal 11"}, {"unready": 3}, {"over_budget": "60% of the users failed"}):
        move = next_move(state, attrs.evolve(busy, **change))  # type: ignore[arg-type]
        assert move is not None
        assert move.event == "rollback"


def test_a_rollout_that_nobody_can_certify_ends_at_its_limit() -> None:
    plan = attrs.evolve(PLAN, limits=Limits(total=Seconds("100s")))
    state = replay(begun(plan), [("weight", {"weight": 0.25, "step": 1}, 1.0)])
    assert next_move(state, good(99.0)) is None
    move = next_move(state, good(101.0))
    assert move is not None
    assert "certify" in move.reason


def test_a_version_leaves_only_at_weight_zero_with_nothing_in_flight() -> None:
    state = take(begun(), rollback_move("worse", cut=False), 1.0)
    assert next_move(state, good(2.0, idle=False)) is None
    assert next_move(state, good(2.0, sessions=3)) is None
    for seen in (good(2.0), good(2.0, sessions=3, leaving=3600.0)):
        move = next_move(state, seen)
        assert move is not None
        assert move.event == "retired"


events = st.sampled_from(
    ["ready", "tested", "mirrored", "weight", "certified", "gate", "paused", "resumed", "promoted", "rollback",
     "retired", "from the future"]
)  # fmt: skip
records = st.lists(
    st.tuples(events, st.fixed_dictionaries({"weight": st.floats(0, 1), "step": st.integers(0, 2)}), st.floats(0, 1e9)),
    max_size=30,
)


@settings(max_examples=300)
@given(records)
def test_no_order_of_records_raises_the_weight_after_a_rollback(log: list[tuple[str, dict[str, float], float]]) -> None:
    state = begun()
    for event, fields, at in log:
        state = apply(state, event, fields, at)
        assert 0 <= state.weight <= 1
        assert not state.latched or state.weight == 0.0
    rolled_back = any(event == "rollback" for event, _, _ in log[: _over(log)])
    assert state.latched == (rolled_back or state.phase is Phase.ROLLED_BACK)


def _over(log: list[tuple[str, dict[str, float], float]]) -> int:
    state = begun()
    for number, (event, fields, at) in enumerate(log):
        state = apply(state, event, fields, at)
        if state.phase.over:
            return number + 1
    return len(log)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.1, 40), st.sampled_from(list(Decision))), min_size=1, max_size=40), st.data())
def test_a_crash_at_every_record_resumes_at_or_below_the_journaled_weight(
    ticks: list[tuple[float, Decision]], data: st.DataObject
) -> None:
    state, now = begun(), 0.0
    log: list[tuple[str, object, float]] = []
    in_force = [0.0]
    for wait, decision in ticks:
        now += wait
        move = next_move(state, good(now, decision=decision))
        if move is None:
            continue
        log.append((move.event, move.fields, now))
        state = take(state, move, now)
        in_force.append(state.weight)
    cut = data.draw(st.integers(0, len(log)))
    resumed = replay(begun(), log[:cut])  # type: ignore[arg-type]
    assert resumed.weight <= max(in_force[: cut + 1])
    assert resumed.weight == in_force[cut]


def test_a_rollbacks_end_that_is_on_disk_before_it_still_means_rolled_back() -> None:
    """Lowering is done first and journaled after, so a kill may leave the end without the beginning."""
    state = attrs.evolve(begun(), phase=Phase.RAMPING, weight=0.85, step=3)
    ended = apply(state, "retired", {}, 9.0)
    assert (ended.phase, ended.weight, ended.latched) == (Phase.ROLLED_BACK, 0.0, True)
    late = apply(ended, "rollback", {"reason": "worse"}, 9.1)
    assert late == ended
