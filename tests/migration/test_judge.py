"""The judge: few false rollbacks, quick true ones, no verdict without data."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_migration.evidence import BETTER, WORSE, BudgetTest, FirstSeen, Mixture, RatioTest
from deia_migration.judge import Decision, Judge, JudgeRules

inner_weights = st.floats(0.001, 0.999)


@given(inner_weights, st.floats(0.2, 3.0))
def test_a_bet_against_new_cannot_be_won_on_average_while_it_is_no_worse(weight: float, true: float) -> None:
    """One throw's expected factor is at most 1 for every alternative: E is a supermartingale."""
    null = 1.0
    chance = weight * true / (1 - weight + weight * true)
    for ratio in WORSE.values:
        factor_old = (1 - weight + weight * null) / (1 - weight + weight * ratio)
        expected = chance * factor_old * ratio / null + (1 - chance) * factor_old
        if true <= null:
            assert expected <= 1 + 1e-9
        test = RatioTest(null, Mixture((ratio,), (1.0,)))
        test.observe(True, weight)
        assert math.isclose(math.exp(test.log_e()), factor_old * ratio / null, rel_tol=1e-9)


@given(inner_weights, st.floats(0.0001, 0.5), st.floats(0.0001, 0.9))
def test_the_budget_cannot_be_certified_on_average_by_a_version_beyond_it(
    weight: float, budget: float, extra: float
) -> None:
    true = budget + (1 - budget) * extra
    for part in BETTER.values:
        good, bad = BudgetTest(budget, Mixture((part,), (1.0,))), BudgetTest(budget, Mixture((part,), (1.0,)))
        good.observe(False, weight)
        bad.observe(True, weight)
        chance = weight * true
        assert chance * math.exp(bad.log_e()) + (1 - chance) * math.exp(good.log_e()) <= 1 + 1e-9


def test_the_mean_over_both_outcomes_is_one_when_the_versions_are_equal() -> None:
    for weight in (0.01, 0.1, 0.5, 0.9, 0.99):
        new, old = RatioTest(1.0, WORSE), RatioTest(1.0, WORSE)
        new.observe(True, weight)
        old.observe(False, weight)
        assert weight * math.exp(new.log_e()) + (1 - weight) * math.exp(old.log_e()) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.booleans(), inner_weights), max_size=200))
def test_evidence_never_overflows_and_does_not_depend_on_order(throws: list[tuple[bool, float]]) -> None:
    forth, back = RatioTest(1.0, WORSE), RatioTest(1.0, WORSE)
    for new, weight in throws:
        forth.observe(new, weight)
    for new, weight in reversed(throws):
        back.observe(new, weight)
    assert math.isfinite(forth.log_e())
    assert forth.log_e() == pytest.approx(back.log_e(), abs=1e-6)


@pytest.mark.parametrize(("weight", "most"), [(0.01, 2), (0.1, 3), (0.5, 10), (0.9, 55), (0.99, 560)])
def test_a_dead_version_is_rolled_back_within_the_stated_number_of_failures(weight: float, most: int) -> None:
    judge = Judge(JudgeRules())
    needed = 0
    while judge.verdict().decision is not Decision.ROLL_BACK:
        needed += 1
        judge.record(key=needed * 7919, new=True, weight=weight, failed=True)
        assert needed <= most
    assert needed >= 2


def exposed_until_rollback(seed: int) -> int:
    chooser = random.Random(seed)
    judge = Judge(JudgeRules())
    exposed = 0
    for user in range(30_000):
        new = chooser.random() < 0.1
        exposed += new
        failed = chooser.random() < (0.05 if new else 0.005)
        changed = failed and judge.record(key=user, new=new, weight=0.1, failed=True)
        if changed and judge.verdict().decision is Decision.ROLL_BACK:
            return exposed
    return 30_000


def test_half_a_percent_to_five_at_weight_ten_is_rolled_back_within_a_hundred_exposed_users() -> None:
    assert statistics.median(exposed_until_rollback(seed) for seed in range(600)) <= 100


def rolled_back(seed: int, *, heavy: bool, outage: bool) -> bool:
    """One rollout of two equal versions over 800 failures, looked at after each."""
    chooser = random.Random(seed)
    judge = Judge(JudgeRules())
    users = [chooser.paretovariate(1.1) if heavy else 1.0 for _ in range(600)]
    places: dict[int, float] = {}
    draws = chooser.choices(range(600), users, k=800)
    for number in range(800):
        weight = (0.01, 0.1, 0.5, 0.9)[number * 4 // 800]
        user = draws[number] if heavy else number
        if outage and 250 < number < 550:
            user = chooser.randrange(10**9)
        place = places.setdefault(user, chooser.random())
        changed = judge.record(key=user * 2654435761 % 2**64, new=place < weight, weight=weight, failed=True)
        if changed and judge.verdict().decision is Decision.ROLL_BACK:
            return True
    return False


@pytest.mark.parametrize(("heavy", "outage"), [(False, False), (True, True)])
def test_equal_versions_are_rarely_rolled_back_however_often_one_looks(heavy: bool, outage: bool) -> None:
    runs = 60
    false = sum(rolled_back(seed, heavy=heavy, outage=outage) for seed in range(runs))
    assert false <= 4  # P(more than 4 of 60 at 1%) < 0.0004


def test_one_user_however_often_it_fails_condemns_nobody() -> None:
    judge = Judge(JudgeRules())
    for _ in range(10_000):
        judge.record(key=42, new=True, weight=0.01, failed=True)
    verdict = judge.verdict()
    assert verdict.decision is Decision.HOLD
    assert verdict.evidence.failed_new == 1


def test_no_data_is_never_a_pass() -> None:
    assert Judge(JudgeRules()).verdict().decision is Decision.HOLD


def test_a_healthy_version_is_certified_by_its_users_not_by_the_clock() -> None:
    judge = Judge(JudgeRules(slow_share=0.0))
    for user in range(100):
        judge.record(key=user, new=user % 10 == 0, weight=0.1)
    assert judge.verdict().decision is Decision.HOLD
    for user in range(100, 8_000):
        judge.record(key=user, new=user % 10 == 0, weight=0.1)
    assert judge.verdict().decision is Decision.PROMOTE


def test_an_equal_version_with_failures_is_certified_by_the_ratio() -> None:
    chooser = random.Random(3)
    judge = Judge(JudgeRules(slow_share=0.0))
    for user in range(20_000):
        judge.record(key=user, new=chooser.random() < 0.5, weight=0.5, failed=chooser.random() < 0.03)
    assert judge.verdict().decision is Decision.PROMOTE


def test_a_version_twice_as_bad_is_hardly_ever_certified() -> None:
    certified = 0
    for seed in range(40):
        chooser = random.Random(seed)
        judge = Judge(JudgeRules(slow_share=0.0, alpha=1e-6, budget=0.01))
        for user in range(4_000):
            new = chooser.random() < 0.5
            judge.record(key=user, new=new, weight=0.5, failed=chooser.random() < (0.04 if new else 0.02))
            if user % 50 == 0 and judge.verdict().decision is Decision.PROMOTE:
                certified += 1
                break
    assert certified <= 6  # at most 5% expected


def test_a_slower_version_is_rolled_back_although_nothing_fails() -> None:
    chooser = random.Random(5)
    judge = Judge(JudgeRules())
    for user in range(3_000):
        new = chooser.random() < 0.1
        judge.record(key=user, new=new, weight=0.1, slow=chooser.random() < (0.3 if new else 0.01))
        verdict = judge.verdict()
        if verdict.decision is Decision.ROLL_BACK:
            break
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.evidence.cause == "slow"


def test_weights_of_nothing_and_everything_say_nothing() -> None:
    judge = Judge(JudgeRules())
    for user in range(100):
        assert not judge.record(key=user, new=True, weight=1.0, failed=True)
        assert not judge.record(key=user, new=False, weight=0.0, failed=True)
    assert judge.verdict().evidence.keys == 0


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=500), st.integers(2, 64))
def test_the_memory_of_keys_is_bounded_and_never_counts_one_twice(keys: list[int], limit: int) -> None:
    seen = FirstSeen(limit)
    counted = [key for key in keys + keys if seen.add(key)]
    assert len(seen) <= limit
    assert len(counted) == len(set(counted))


def test_a_full_memory_goes_on_with_a_part_of_the_keys() -> None:
    chooser = random.Random(1)
    seen = FirstSeen(1_000)
    counted = sum(seen.add(chooser.getrandbits(64)) for _ in range(50_000))
    assert 0 < seen.share < 0.1
    assert counted > 2_000
