"""Budgets are never overdrawn, and what was set aside comes back. In memory and in a mapped file alike."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_degradation.pool.budget import Bounds, Budget, Reservation
from deia_degradation.pool.ledger import Ledger


@pytest.fixture(params=["memory", "file"])
def made(request, tmp_path):
    """Makes budgets, each with an account of its own."""
    ledger, keys = Ledger(), iter(range(1000))
    accounts = ledger.accounts("quotas", 3, 50, learns=True)
    if request.param == "file":
        ledger.open(tmp_path / "budgets")
        assert not ledger.trouble
    yield lambda bounds: Budget(bounds, accounts, str(next(keys)))
    ledger.close()


def test_within_the_bound_calls_pass_and_beyond_it_the_time_is_told(made):
    budget = made(Bounds(requests=2, per=60.0))
    assert isinstance(budget.reserve(0.0), Reservation)
    assert isinstance(budget.reserve(10.0), Reservation)
    wait = budget.reserve(20.0)
    assert 60.0 <= wait <= 62.0
    assert isinstance(budget.reserve(wait), Reservation)


def test_tokens_are_settled_by_what_was_used(made):
    budget = made(Bounds(tokens=1000, per=60.0))
    one = budget.reserve(0.0, tokens=900)
    assert not isinstance(budget.reserve(1.0, tokens=200), Reservation)
    budget.settle(one, 2.0, tokens=100)
    assert isinstance(budget.reserve(3.0, tokens=900), Reservation)
    assert not isinstance(budget.reserve(3.0, tokens=1), Reservation)


def test_a_call_that_used_more_than_it_said_holds_up_the_next(made):
    budget = made(Bounds(tokens=1000, per=60.0))
    budget.settle(budget.reserve(0.0, tokens=10), 1.0, tokens=1500)
    assert not isinstance(budget.reserve(2.0), Reservation)


def test_more_than_the_bound_never_fits(made):
    assert made(Bounds(money=1.0)).reserve(0.0, money=2.0) == inf


def test_a_call_that_was_not_sent_costs_nothing(made):
    budget = made(Bounds(requests=1))
    budget.cancel(budget.reserve(0.0), 0.0)
    assert isinstance(budget.reserve(0.0), Reservation)


def test_settling_twice_counts_once(made):
    budget = made(Bounds(tokens=100))
    one = budget.reserve(0.0, tokens=50)
    for _ in range(3):
        budget.settle(one, 0.0, tokens=10)
        budget.cancel(one, 0.0)
    assert budget.used(0.0)["tokens"] == 10


@pytest.mark.parametrize("nonsense", [-1e9, nan, inf])
def test_no_figure_gives_a_budget_more_than_it_has(made, nonsense):
    """Usage comes from upstreams' answers, estimates from the app."""
    budget = made(Bounds(tokens=100, per=60.0))
    for _ in range(2):
        budget.reserve(0.0, tokens=nonsense, money=nonsense)
        budget.settle(budget.reserve(0.0, tokens=40, money=nonsense), 1.0, tokens=nonsense, money=nonsense)
    budget.settle(budget.reserve(1.0, tokens=20), 1.0)
    if nonsense > 0 or nonsense != nonsense:  # what was set aside stays
        assert budget.used(1.0)["tokens"] == 100
        assert not isinstance(budget.reserve(2.0, tokens=1), Reservation)
    else:
        assert budget.used(1.0)["tokens"] == 20
    assert budget.used(200.0) == {"requests": 0.0, "tokens": 0.0, "money": 0.0}


def test_a_budget_of_a_day_slides_over_midnight(made):
    """No moment gives a whole new day's money to who has just used one."""
    budget, cent = made(Bounds(money=1.0, per=86400.0)), 0.01
    granted = []
    for minute in range(3 * 1440):
        found = budget.reserve(minute * 60.0, money=cent)
        if isinstance(found, Reservation):
            budget.settle(found, minute * 60.0 + 1, money=cent)
            granted.append(minute)
    for start in granted:
        assert sum(start <= minute < start + 1440 for minute in granted) <= 100
    assert len(granted) == 300


def test_what_the_upstream_says_is_believed(made):
    budget = made(Bounds())
    budget.learn("requests", 1, 0.0, 30.0)
    assert isinstance(budget.reserve(0.0), Reservation)
    assert budget.reserve(1.0) == 30.0
    assert isinstance(budget.reserve(30.0), Reservation)


@pytest.mark.parametrize("shared", [False, True])
def test_the_number_of_keys_is_bounded_and_the_latest_are_kept(tmp_path, shared):
    ledger = Ledger()
    accounts = ledger.accounts("clients", 1, 100)
    if shared:
        ledger.open(tmp_path)
    length = {path: path.stat().st_size for path in tmp_path.iterdir()}
    for index in range(1000):
        budget = Budget(Bounds(requests=1), accounts, str(index))
        assert isinstance(budget.reserve(index * 0.001), Reservation)
        assert not isinstance(budget.reserve(index * 0.001), Reservation)
    kept = [
        not isinstance(Budget(Bounds(requests=1), accounts, str(index)).reserve(1.0), Reservation)
        for index in range(999, 0, -1)
    ]
    assert all(kept[:20])
    assert not any(kept[-500:])
    assert length == {path: path.stat().st_size for path in tmp_path.iterdir()}
    ledger.close()


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.1, 60.0), st.floats(0.0, 1.0), st.booleans()), max_size=120)
)
def test_in_no_stretch_of_a_period_more_is_granted_than_the_bound(calls):
    budget, per, bound = Budget(Bounds(tokens=100.0, per=60.0)), 60.0, 100.0
    now, granted = 0.0, []
    for step, tokens, share, settles in calls:
        now += step
        found = budget.reserve(now, tokens=tokens)
        if isinstance(found, Reservation):
            used = tokens
            if settles:
                used = tokens * share
                budget.settle(found, now, tokens=used)
            granted.append((now, used))
        else:
            assert found > now
    for start, _ in granted:
        inside = sum(used for when, used in granted if start <= when < start + per)
        assert inside <= bound + 1e-6


@given(st.lists(st.tuples(st.sampled_from(["call", "count", "answer"]), st.integers(0, 9)), max_size=200))
def test_what_an_upstream_says_is_never_overdrawn_however_calls_and_answers_overtake_each_other(steps):
    """Ten a window. The upstream counts a call when it comes there, and says with its answer what was left then."""
    budget, counted = Budget(Bounds()), 0
    sent, answers = [], []

    def act(what, which):
        nonlocal counted
        if what == "call":
            found = budget.reserve(0.0)
            if isinstance(found, Reservation):
                sent.append(found)
        elif what == "count" and sent:
            counted += 1
            answers.append((sent.pop(which % len(sent)), 10 - counted))
        elif what == "answer" and answers:
            reservation, left = answers.pop(which % len(answers))
            budget.learn("requests", left, 0.0, 60.0, known=reservation)
            budget.settle(reservation, 0.0)

    for what in ("call", "count", "answer"):  # before the first answer nothing is known
        act(what, 0)
    for what, which in steps:
        act(what, which)
        assert counted + len(sent) <= 10
    assert isinstance(budget.reserve(60.0), Reservation)


def test_calls_one_after_the_other_may_use_all_that_an_upstream_gives(made):
    budget, granted = made(Bounds()), 0
    while isinstance(found := budget.reserve(0.0), Reservation):
        granted += 1
        budget.learn("requests", 10 - granted, 0.0, 60.0, known=found)
        budget.settle(found, 0.0)
    assert (granted, found) == (10, 60.0)


def test_a_bucket_that_fills_again_is_followed(made):
    """Some upstreams tell the time until all is there again, which moves on with every answer."""
    budget, now = made(Bounds()), 0.0
    for _ in range(1000):
        now += 0.1
        found = budget.reserve(now)
        assert isinstance(found, Reservation)
        budget.learn("requests", 50, now, 59.0, known=found)
        budget.settle(found, now)


@pytest.mark.parametrize("bound", [0.0])
def test_no_bound_means_no_bound(made, bound):
    budget = made(Bounds(requests=bound))
    assert all(isinstance(budget.reserve(0.0, tokens=1e9), Reservation) for _ in range(1000))
