"""The sequential test behind ejection: how soon a bad bot is out, and that a good one stays."""

from __future__ import annotations

import random

import pytest

from deia_degradation.pool.eject import EjectPolicy, Evidence, upper_rate

POLICY = EjectPolicy()


class Trio:
    """Three bots that are asked at random."""

    def __init__(self, seed: int, warm_up: int = 300, background: float = 0.0):
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.bots = [Evidence(), Evidence(), Evidence()]
        self.peers = [[other for other in self.bots if other is not one] for one in self.bots]
        for _ in range(warm_up):
            self.ask([background] * 3)

    def ask(self, rates: list[float]) -> tuple[int, bool]:
        index = int(self.rng.random() * 3)
        if self.rng.random() < rates[index]:
            return index, self.bots[index].failure(self.peers[index], POLICY)
        self.bots[index].succeeded(POLICY)
        return index, False


def requests_until_out(rate: float, seed: int, background: float = 0.0) -> int:
    trio = Trio(seed, background=background)
    trio.bots[0].forgive()
    asked = 0
    while asked < 2000:
        index, out = trio.ask([rate, background, background])
        asked += index == 0
        if out and index == 0:
            return asked
    raise AssertionError("never ejected")


@pytest.mark.parametrize(("rate", "at_most"), [(1.0, 5.0), (0.5, 9.0), (0.3, 18.0)])
def test_a_failing_bot_is_out_soon(rate: float, at_most: float):
    needed = [requests_until_out(rate, seed) for seed in range(200)]
    assert sum(needed) / len(needed) <= at_most


def test_an_outage_that_everybody_shares_ejects_nobody():
    for seed in range(100):
        trio = Trio(seed)
        assert not any(trio.ask([1.0, 1.0, 1.0])[1] for _ in range(300))


@pytest.mark.parametrize("background", [0.01, 0.05, 0.2])
def test_background_failures_eject_nobody(background: float):
    trio = Trio(7, background=background)
    rates = [background] * 3
    assert sum(trio.ask(rates)[1] for _ in range(200_000)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("background", [0.01, 0.05, 0.2])
def test_false_ejections_are_at_most_one_in_a_million(background: float):
    trio = Trio(11, background=background)
    rates = [background] * 3
    assert sum(trio.ask(rates)[1] for _ in range(10_000_000)) <= 10


def test_with_no_peers_there_is_no_verdict():
    alone = Evidence()
    assert not any(alone.failure([], POLICY) for _ in range(1000))


def test_a_peer_that_left_takes_nothing_away():
    one, other = Evidence(), Evidence()
    for _ in range(50):
        other.succeeded(POLICY)
    one.failure([other], POLICY)
    fresh = Evidence()
    for _ in range(10):
        assert one.failure([fresh], POLICY) is False


def test_the_upper_rate_stays_between_floor_and_one():
    for count in (0.0, 1.0, 10.0, 1000.0):
        for rate in (0.0, 0.01, 0.5, 1.0):
            assert 0.002 <= upper_rate(rate, count, 0.002) <= 1.0
