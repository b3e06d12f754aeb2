"""The split's laws: monotone, fair, and never far off in any stretch."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.sharding import bucket
from deia_migration.split import BLOCK, Blocks, Split, ranks

weights = st.floats(0, 1)


@given(st.text(max_size=40), st.text(max_size=20), weights)
def test_a_key_is_new_exactly_when_its_bucket_is_below_the_weight(key: str, salt: str, weight: float) -> None:
    assert Split(salt).new(key, weight) is (bucket(key, salt) < weight)


@given(st.text(max_size=40), st.text(max_size=20), weights, weights)
def test_raising_the_weight_only_moves_keys_to_new(key: str, salt: str, one: float, two: float) -> None:
    split = Split(salt)
    low, high = sorted((one, two))
    assert split.new(key, high) or not split.new(key, low)


@given(st.text(max_size=40), st.text(max_size=20))
def test_nobody_is_new_at_zero_and_everybody_at_one(key: str, salt: str) -> None:
    split = Split(salt)
    assert not split.new(key, 0.0)
    assert split.new(key, 1.0)
    assert not split.new(None, 0.0)
    assert split.new(None, 1.0)


@given(st.binary(max_size=16), st.integers(0, 2**40))
def test_a_block_is_a_permutation(seed: bytes, block: int) -> None:
    assert sorted(ranks(seed, block)) == list(range(BLOCK))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=8), st.one_of(weights, st.integers(0, 100).map(lambda n: n / 100)))
def test_no_stretch_without_keys_is_more_than_25_requests_off(seed: str, weight: float) -> None:
    blocks = Blocks(seed)
    surplus, low, high = 0.0, 0.0, 0.0
    for _ in range(3_000):
        surplus += blocks.new(weight) - weight
        low, high = min(low, surplus), max(high, surplus)
    assert high - low <= 25  # the worst stretch is the one between the lowest and the highest point


def test_the_stretch_bound_is_half_of_what_is_promised() -> None:
    worst = 0.0
    for seed in range(40):
        for percent in range(1, 100, 7):
            blocks = Blocks(str(seed))
            surplus = low = high = 0.0
            for _ in range(1_000):
                surplus += blocks.new(percent / 100) - percent / 100
                low, high = min(low, surplus), max(high, surplus)
            worst = max(worst, high - low)
    assert worst <= 13


@pytest.mark.parametrize("weight", [0.005, 0.1, 0.337, 0.5, 0.99])
def test_each_position_is_new_with_the_weights_probability(weight: float) -> None:
    runs = 3_000
    hits = [0] * BLOCK
    for seed in range(runs):
        blocks = Blocks(f"seed-{seed}")
        for position in range(BLOCK):
            hits[position] += blocks.new(weight)
    error = math.sqrt(weight * (1 - weight) / runs)
    assert max(abs(hit / runs - weight) for hit in hits) < 5 * error


def test_the_share_of_keys_is_binomial_and_nobody_moves_back() -> None:
    keys = [f"user-{number}" for number in range(20_000)]
    split = Split("rollout-1")
    before: set[str] = set()
    for step in range(1, 20):
        weight = step / 20
        now = {key for key in keys if split.new(key, weight)}
        assert before <= now
        assert abs(len(now) - weight * len(keys)) < 4 * math.sqrt(len(keys) * weight * (1 - weight))
        before = now


@pytest.mark.slow
def test_a_million_keys_over_a_hundred_steps_stay_within_three_standard_errors() -> None:
    number = 1_000_000
    counts = [0] * 100
    for key in range(number):
        value = bucket(f"key-{key}", "rollout-2026")
        counts[int(value * 100)] += 1
    total = 0
    outside = 0
    for step, here in enumerate(counts[:-1], start=1):
        total += here
        weight = step / 100
        outside += abs(total - weight * number) > 3 * math.sqrt(number * weight * (1 - weight))
    assert outside == 0


def test_a_fresh_salt_chooses_other_keys() -> None:
    keys = [f"user-{number}" for number in range(5_000)]
    first = {key for key in keys if Split("a").new(key, 0.1)}
    second = {key for key in keys if Split("b").new(key, 0.1)}
    assert len(first & second) < 0.03 * len(keys)


def test_a_weight_that_moves_within_a_block_keeps_every_stretch_close() -> None:
    chooser = random.Random(7)
    blocks = Blocks("moving")
    weight = 0.0
    surplus: deque[float] = deque([0.0], maxlen=100_000)
    for number in range(5_000):
        if number % 400 == 399:
            weight = min(1.0, weight + chooser.random() / 8)
        surplus.append(surplus[-1] + blocks.new(weight) - weight)
    assert max(surplus) - min(surplus) <= 25
