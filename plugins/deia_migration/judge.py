"""The verdict on a new version: roll back, promote, or hold, valid however often one looks.

Pure: it takes outcomes and gives a verdict, with no clock, loop or disk. Only a key's first failure counts (one
heavy user, or one attacker, is one voice), two distinct keys must have failed on new before it is condemned, and
no data is never a pass. False rollbacks of a version that is no worse stay below `alpha`; see `evidence`.
"""

from __future__ import annotations

import enum
import math

import attrs

from deia_migration.evidence import BETTER, WORSE, BudgetTest, FirstSeen, Mixture, RatioTest, log_sum


class Decision(enum.StrEnum):
    """What the evidence says."""

    HOLD = "hold"
    ROLL_BACK = "roll back"
    PROMOTE = "promote"


@attrs.frozen(kw_only=True)
class JudgeRules:
    """What the judge is held to.

    Attributes:
        alpha: the greatest chance of rolling back a version that is no worse, over the whole rollout, in (0, 1).
        beta: the greatest chance of promoting a version beyond the margin, in (0, 1).
        tolerance: the failure ratio new/old that is still no reason to roll back; 1 is "no worse".
        margin: promotion certifies that the ratio is below this; above `tolerance`.
        budget: or that less than this share of the keys fails on new.
        slow_share: the part of `alpha` that is bet on "slower than old's frozen p99"; the rest is on failures.
        distinct: so many different keys must have failed on new before a rollback.
        keys: how many keys are remembered; memory is bounded by some 100 bytes each.
        worse: the alternatives of the rollback tests.
    """

    alpha: float = 0.01
    beta: float = 0.05
    tolerance: float = 1.0
    margin: float = 2.0
    budget: float = 0.01
    slow_share: float = 0.2
    distinct: int = 2
    keys: int = 65_536
    worse: Mixture = WORSE


@attrs.frozen(kw_only=True)
class Evidence:
    """What the judge knew when it decided; this is what the log shows.

    `e_*` are evidences (E): `e_rollback` is compared with 1/alpha, the two promotion ones with 1/beta. Counts are
    keys, not requests: `failed_new` keys failed first on new, `failed_old` on old, `keys` were seen at all.
    """

    e_rollback: float = 1.0
    e_promote_failures: float = 1.0
    e_promote_slow: float = 1.0
    keys: int = 0
    failed_new: int = 0
    failed_old: int = 0
    slow_new: int = 0
    slow_old: int = 0
    cause: str = ""


@attrs.frozen
class Verdict:
    """A decision and what it rests on."""

    decision: Decision
    evidence: Evidence


@attrs.define
class _Metric:
    """One thing that can be wrong with an answer, with both of its tests."""

    against: RatioTest
    favour: RatioTest
    seen: FirstSeen
    new: int = 0
    old: int = 0
    new_keys: set[int] = attrs.field(factory=set)

    def first(self, key: int, new: bool, weight: float, distinct: int) -> bool:
        if not self.seen.add(key):
            return False
        self.against.observe(new, weight)
        self.favour.observe(new, weight)
        if new:
            self.new += 1
            if len(self.new_keys) < distinct:
                self.new_keys.add(key)
        else:
            self.old += 1
        return True


class Judge:
    """Collects outcomes of one rollout and gives the verdict. Not thread-safe: its owner serialises.

    >>> judge = Judge(JudgeRules())
    >>> for user in (11, 12, 13):
    ...     _ = judge.record(key=user, new=True, weight=0.1, failed=True)
    >>> judge.verdict().decision
    <Decision.ROLL_BACK: 'roll back'>
    """

    def __init__(self, rules: JudgeRules) -> None:
        self.rules = rules
        self._failures = self._metric()
        self._slow = self._metric()
        self._budget = BudgetTest(rules.budget, BETTER)
        self._exposed = FirstSeen(rules.keys)
        self._keys = 0
        self._threshold = math.log(1 / rules.alpha)

    def _metric(self) -> _Metric:
        rules = self.rules
        favour = Mixture(tuple(rules.margin * part for part in BETTER.values), BETTER.weights)
        worse = Mixture(tuple(rules.tolerance * value for value in rules.worse.values), rules.worse.weights)
        return _Metric(RatioTest(rules.tolerance, worse), RatioTest(rules.margin, favour), FirstSeen(rules.keys))

    def record(self, *, key: int, new: bool, weight: float, failed: bool = False, slow: bool = False) -> bool:
        """Count one answered request; True when the evidence against new has changed.

        Args:
            key: a 64-bit hash of who asked (an authenticated actor, else a network prefix).
            new: whether the new version answered.
            weight: the probability with which this key was assigned to new when it was assigned.
            failed: the answer was a failure, by status, exception, truncation or the team's predicate.
            slow: the answer began later than old's frozen p99.
        """
        if not 0.0 < weight < 1.0:
            return False
        if self._exposed.add(key):
            self._keys += 1
            self._budget.observe(failed and new, weight)
        changed = False
        if failed:
            changed = self._failures.first(key, new, weight, self.rules.distinct)
        if slow:
            changed = self._slow.first(key, new, weight, self.rules.distinct) or changed
        return changed

    def verdict(self) -> Verdict:
        """Decide on what is known now; some microseconds."""
        rules = self.rules
        failures, slow = self._failures, self._slow
        against_failures, against_slow = failures.against.log_e(), slow.against.log_e()
        part = rules.slow_share
        against = (
            log_sum((against_failures, against_slow), (1 - part, part))
            if 0 < part < 1
            else (against_slow if part else against_failures)
        )
        for_failures = log_sum((failures.favour.log_e(), self._budget.log_e()), (0.5, 0.5))
        for_slow = slow.favour.log_e() if part else math.inf
        leading = slow if part and math.log(part) + against_slow > against_failures else failures
        decision = Decision.HOLD
        if against >= self._threshold and len(leading.new_keys) >= rules.distinct:
            decision = Decision.ROLL_BACK
        elif min(for_failures, for_slow) >= math.log(1 / rules.beta):
            decision = Decision.PROMOTE
        return Verdict(
            decision,
            Evidence(
                e_rollback=_bounded(against),
                e_promote_failures=_bounded(for_failures),
                e_promote_slow=_bounded(for_slow) if part else 0.0,
                keys=self._keys,
                failed_new=failures.new,
                failed_old=failures.old,
                slow_new=slow.new,
                slow_old=slow.old,
                cause="slow" if leading is slow else "failures",
            ),
        )


def _bounded(log_e: float) -> float:
    """E itself, kept within what JSON and a person can read."""
    return float(f"{math.exp(max(-50.0, min(50.0, log_e))):.4g}")
