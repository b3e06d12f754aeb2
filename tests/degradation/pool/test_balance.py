"""What is known of a bot's time to answer: for the choice, and for the moment at which another one is asked."""

from __future__ import annotations

import random

import pytest

from deia_degradation.pool.balance import BalancePolicy, Load

POLICY = BalancePolicy()


def after(*answers, every=0.02):
    """A bot that has given these answers, one after the other."""
    load, now = Load(), 0.0
    for seconds in answers:
        load.taken(now)
        load.in_flight -= 1
        now += every
        load.observe(now, seconds, POLICY)
    return load


def test_a_stall_just_before_a_bot_hangs_makes_nobody_wait_long_for_it():
    calm = after(*[0.010] * 200)
    stalled = after(*[0.010] * 200, *[0.045] * 4)
    assert calm.expected == pytest.approx(0.010)
    assert stalled.latency == pytest.approx(0.045)
    assert stalled.expected <= 0.022


@pytest.mark.parametrize("first", [[0.001], [0.100], [0.001] * 16])
def test_a_bot_that_becomes_slower_for_good_is_expected_to_be_so_after_some_answers(first):
    assert after(*first, *[0.100] * 50).expected == pytest.approx(0.100)


def test_what_is_usual_lies_near_the_time_that_one_in_twenty_exceeds():
    dice = random.Random(1)
    load = after(*(dice.lognormvariate(-4.6, 0.5) for _ in range(5000)))
    exceeded = sum(dice.lognormvariate(-4.6, 0.5) > load.usual for _ in range(5000)) / 5000
    assert 0.01 < exceeded < 0.15


def test_a_bot_that_is_slow_by_nature_is_given_its_time():
    load = after(*[0.300] * 100)
    assert load.expected == pytest.approx(0.300)
    load = after(*[0.010, 0.300] * 100)
    assert load.expected > 0.25


def test_one_that_has_never_answered_is_expected_at_once():
    assert Load().expected == 0.0
