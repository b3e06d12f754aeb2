"""A rollout as a machine: what its log says it is, and what it does next. Pure, no clock, no disk.

The state is the fold of the records in `migration-log.jsonl`, so a process that was killed anywhere goes on from
what it had written: at or below the journaled weight, because a weight is journaled before it rises. A rollback
latches: nothing but a new rollout raises the weight again, and one that was cut off by a crash is finished.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from deia_migration.judge import Decision
from deia_migration.plan import Plan


class Phase(enum.StrEnum):
    """Where a rollout stands."""

    STARTING = "starting"
    TESTING = "testing"
    MIRRORING = "mirroring"
    RAMPING = "ramping"
    BAKING = "baking"
    PROMOTED = "promoted"
    """New serves everything; the old version drains."""
    DONE = "done"
    ROLLING_BACK = "rolling-back"
    """Old serves everything new; the new version drains."""
    ROLLED_BACK = "rolled-back"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (Phase.DONE, Phase.ROLLED_BACK)


@attrs.frozen(kw_only=True)
class Rollout:
    """One rollout, as its records tell.

    Attributes:
        id: of the rollout, a fresh one each time; it is the split's salt.
        stable, candidate: names of the versions; `stable` is "" for the wrapped app itself.
        target: what answers as the candidate (`inproc:…`, `process:…`, `http://…`, `unix:…`).
        digest: of the candidate's deployed code, "" where none was copied.
        stable_target, stable_digest: the same of the stable version.
        weight: the greatest weight that may be in force.
        certified: whether the judge has certified the candidate.
        since: Unix seconds at which the present step began.
        gate_open: whether the present step's gate was passed.
        latched: a rollback happened: the weight stays 0.
        by, reason: who started it, and why; after a rollback, what for.
    """

    id: str
    plan: Plan
    candidate: str
    target: str = ""
    digest: str = ""
    stable: str = ""
    stable_target: str = ""
    stable_digest: str = ""
    phase: Phase = Phase.STARTING
    step: int = -1
    weight: float = 0.0
    started: float = 0.0
    since: float = 0.0
    gate_open: bool = False
    certified: bool = False
    paused: bool = False
    latched: bool = False
    cut: bool = False
    by: str = ""
    reason: str = ""


@attrs.frozen(kw_only=True)
class Seen:
    """What the world looks like now.

    Attributes:
        now: Unix seconds.
        ready: the candidate answers.
        crashed: why the candidate ended by itself, or could not start, or "".
        unready: failed readiness checks in a row.
        decision: the judge's verdict.
        over_budget: at 100%, too many users failed within the window.
        tests: None while they run or have not begun, "" when they passed, else what failed.
        mirror: None while it runs, "" when it agreed, else what differed.
        webhook: None while there is no answer, True for 2xx, False for a refusal.
        idle: the version that leaves has nothing in flight.
        sessions: sessions that still hold the version that leaves.
        leaving: seconds since the version began to leave.
    """

    now: float
    ready: bool = False
    crashed: str = ""
    unready: int = 0
    decision: Decision = Decision.HOLD
    over_budget: str = ""
    tests: str | None = None
    mirror: str | None = None
    webhook: bool | None = None
    idle: bool = True
    sessions: int = 0
    leaving: float = 0.0


@attrs.frozen(kw_only=True)
class Move:
    """What to do next: the record to write, and whether it raises exposure (then it is written first).

    `event` is the record's name; `fields` go into the record and, through `apply`, into the state.
    """

    event: str
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    raises: bool = False
    reason: str = ""


def apply(state: Rollout, event: str, fields: Mapping[str, Any], at: float) -> Rollout:
    """The state after one record. Unknown events change nothing, so a newer log can be read."""
    if state.phase.over:
        return state
    match event:
        case "ready":
            return attrs.evolve(state, phase=Phase.TESTING, since=at)
        case "tested":
            return attrs.evolve(state, phase=Phase.MIRRORING, since=at)
        case "mirrored":
            return attrs.evolve(state, phase=Phase.RAMPING, since=at)
        case "weight":
            if state.latched:
                return state
            return attrs.evolve(
                state,
                phase=Phase(fields.get("phase", Phase.RAMPING)),
                step=int(fields.get("step", state.step)),
                weight=min(1.0, max(0.0, float(fields["weight"]))),
                since=at,
                gate_open=False,
            )
        case "certified":
            return attrs.evolve(state, certified=True)
        case "gate":
            return attrs.evolve(state, gate_open=True)
        case "paused":
            return attrs.evolve(state, paused=True)
        case "resumed":
            return attrs.evolve(state, paused=False)
        case "promoted":
            if state.latched:
                return state
            return attrs.evolve(state, phase=Phase.PROMOTED, weight=1.0, since=at, paused=False)
        case "rollback":
            return attrs.evolve(
                state, phase=Phase.ROLLING_BACK, weight=0.0, latched=True, since=at, paused=False,
                cut=bool(fields.get("cut", False)), reason=str(fields.get("reason", state.reason)),
            )  # fmt: skip
        case "retired":
            if state.phase is Phase.PROMOTED and not state.latched:
                return attrs.evolve(state, phase=Phase.DONE, since=at)
            # A rollback is done first and journaled after: with nothing in flight, its end may be on disk before it.
            return attrs.evolve(state, phase=Phase.ROLLED_BACK, weight=0.0, latched=True, since=at)
    return state


def replay(state: Rollout, records: Iterable[tuple[str, Mapping[str, Any], float]]) -> Rollout:
    """Fold records of (event, fields, Unix seconds) into the state that they tell of."""
    for event, fields, at in records:
        state = apply(state, event, fields, at)
    return state


def next_move(state: Rollout, seen: Seen) -> Move | None:
    """What a rollout does now, or None to wait. Stopping reasons come first: a pause or a gate never hides them."""
    if state.phase.over:
        return None
    if state.phase is Phase.ROLLING_BACK or state.phase is Phase.PROMOTED:
        return _stop_reason(state, seen) or _leave(state, seen)
    stop = _stop_reason(state, seen)
    if stop is not None:
        return stop
    if seen.decision is Decision.PROMOTE and not state.certified and state.phase in (Phase.RAMPING, Phase.BAKING):
        return Move(event="certified", reason="the judge certified the new version")
    if state.paused:
        return None
    match state.phase:
        case Phase.STARTING:
            return Move(event="ready", reason="the new version answers") if seen.ready else None
        case Phase.TESTING:
            return Move(event="tested", reason="every canary test passed") if seen.tests == "" else None
        case Phase.MIRRORING:
            if not state.plan.mirror:
                return Move(event="mirrored", reason="no mirroring was asked for")
            if seen.mirror is not None and seen.now - state.since >= state.plan.mirror:
                return Move(event="mirrored", reason="the mirrored answers agree")
            return None
        case _:
            return _climb(state, seen)


def _stop_reason(state: Rollout, seen: Seen) -> Move | None:
    if state.phase is Phase.ROLLING_BACK:
        return None
    plan, guards = state.plan, state.plan.guards
    why = ""
    if seen.crashed and state.phase is Phase.STARTING:
        why = f"the new version could not start: {seen.crashed}"
    elif seen.crashed and guards.crash:
        why = f"the new version ended by itself: {seen.crashed}"
    elif guards.unready and seen.unready >= guards.unready and state.phase is not Phase.STARTING:
        why = f"the new version failed {seen.unready} readiness checks in a row"
    elif seen.over_budget and state.weight >= 1.0:
        why = seen.over_budget
    elif state.phase is Phase.PROMOTED:
        return None
    elif seen.decision is Decision.ROLL_BACK and 0 < state.weight < 1:
        why = "the judge found the new version worse"
    elif state.phase is Phase.STARTING and seen.now - state.since > plan.limits.start:
        why = f"the new version was not ready within {plan.limits.start}"
    elif state.phase is Phase.TESTING and seen.tests:
        why = f"a canary test failed: {seen.tests}"
    elif state.phase is Phase.TESTING and seen.now - state.since > plan.limits.tests:
        why = f"the canary tests took longer than {plan.limits.tests}"
    elif state.phase is Phase.MIRRORING and seen.mirror:
        why = f"mirrored answers differ: {seen.mirror}"
    elif seen.webhook is False:
        why = "the gate's webhook refused"
    elif seen.now - state.started > plan.limits.total:
        why = f"not promoted within {plan.limits.total}" + (
            "" if state.certified else ", the judge could not certify it"
        )
    return rollback_move(why, cut=plan.rollback == "cut") if why else None


def rollback_move(why: str, *, cut: bool) -> Move:
    """Back to the old version, now."""
    return Move(event="rollback", fields={"reason": why, "cut": cut, "weight": 0.0}, reason=why)


def _climb(state: Rollout, seen: Seen) -> Move | None:
    """The next weight, when the present step's conditions are met."""
    plan = state.plan
    waited = seen.now - state.since
    if state.phase is Phase.BAKING:
        if waited < plan.bake:
            return None
        if plan.promote == "judged" and not state.certified:
            return None
        if plan.promote == "manual" and not state.gate_open:
            return None
        return Move(event="promoted", fields={"weight": 1.0}, raises=True, reason="the bake is over")
    if state.step >= 0:
        step = plan.steps[state.step]
        if waited < step.pause or (step.until == "judged" and not state.certified):
            return None
        if step.gate and not state.gate_open:
            if step.gate == "webhook" and seen.webhook:
                return Move(event="gate", fields={"step": state.step}, reason="the webhook agreed")
            return None
    return after_step(state)


def after_step(state: Rollout) -> Move:
    """The move that follows the present step: the next weight, the bake, or the promotion."""
    plan = state.plan
    following = state.step + 1
    if following < len(plan.steps):
        weight = float(plan.steps[following].weight)
        return Move(
            event="weight", fields={"weight": weight, "step": following, "phase": str(Phase.RAMPING)},
            raises=weight > state.weight, reason=f"step {following + 1} of {len(plan.steps)}",
        )  # fmt: skip
    if plan.bake or plan.promote != "timed":
        weight = max(state.weight, 1.0 - float(plan.holdback))
        if weight >= 1 and plan.promote != "timed":
            weight = state.weight  # the step to 100% is what a person or the judge is asked for
        return Move(
            event="weight", fields={"weight": weight, "step": following, "phase": str(Phase.BAKING)},
            raises=weight > state.weight, reason="the ramp is done, the bake begins",
        )  # fmt: skip
    return Move(event="promoted", fields={"weight": 1.0}, raises=True, reason="the last step is done")


def promote_by_hand(state: Rollout, *, full: bool) -> Move | str:
    """What a person's `promote` does: open the gate, go to the next step, or (`full`) to 100%; or why it can't."""
    if state.latched:
        return "it was rolled back, and a rollback latches: start a new rollout"
    if state.phase in (Phase.STARTING, Phase.TESTING, Phase.MIRRORING):
        return f"it is still {state.phase}: no traffic before it is ready and tested"
    if state.phase in (Phase.PROMOTED, Phase.DONE):
        return "it is promoted already"
    if full or state.phase is Phase.BAKING:
        return Move(event="promoted", fields={"weight": 1.0}, raises=True)
    return after_step(state)


def _leave(state: Rollout, seen: Seen) -> Move | None:
    """Retire the version that leaves once nothing needs it, or its time is over."""
    limits = state.plan.limits
    if state.cut and state.latched:
        return Move(event="retired", fields={"sessions": seen.sessions}, reason="cut") if seen.idle else None
    if seen.idle and (not seen.sessions or seen.leaving >= limits.sessions):
        reason = "nothing in flight" + (f", {seen.sessions} sessions at their deadline" if seen.sessions else "")
        return Move(event="retired", fields={"sessions": seen.sessions}, reason=reason)
    return None
