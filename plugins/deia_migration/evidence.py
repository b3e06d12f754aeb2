"""The e-processes: how strongly the failures seen so far speak against the new version, or for it.

An e-process is a bet that nobody can win on average while its hypothesis holds, so by Ville's inequality (Ville
1939; Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference") the
chance that it ever reaches 1/α is at most α, at any number of looks. The ratio test is the multinomial likelihood
ratio of Lindon and Malek (2022, "Anytime-valid inference for multinomial count data") with a grid as its mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

_log, _log1p, _exp = math.log, math.log1p, math.exp


@attrs.frozen
class Mixture:
    """Alternatives and how much is bet on each. Weights are positive and sum to 1."""

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __attrs_post_init__(self) -> None:
        if len(self.values) != len(self.weights) or not self.values:
            raise ValueError("a mixture needs as many weights as values, and at least one")
        if min(self.weights) <= 0 or abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError("the weights of a mixture are positive and sum to 1")


WORSE = Mixture((1.5, 2.0, 4.0, 10.0, 20.0, 1000.0), (0.04, 0.06, 0.18, 0.44, 0.12, 0.16))
"""Failure ratios new/old that the rollback test bets on. The last one is what a dead version looks like."""

BETTER = Mixture((0.01, 0.25, 0.5, 0.75), (0.25, 0.25, 0.25, 0.25))
"""The promotion test's alternatives, as parts of the margin that it tests."""


def log_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    """log Σ wᵢ·exp(vᵢ), without overflow."""
    top = max(values)
    return top + _log(sum(weight * _exp(value - top) for value, weight in zip(values, weights, strict=True)))


@attrs.define
class RatioTest:
    """Is the failure ratio new/old on the far side of `null`?

    Each first failure of a key is one throw of a coin: it came from new with probability
    w·θ/(1-w+w·θ), where w is the probability with which that key was assigned to new at that moment and θ the
    true ratio. With alternatives above `null` the test speaks against new (hypothesis: θ ≤ null), with
    alternatives below it for new (hypothesis: θ ≥ null). How often either version is called, and a fault that
    both share, do not enter.
    """

    null: float
    mixture: Mixture
    logs: list[float] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        below = [value < self.null for value in self.mixture.values]
        if self.null <= 0 or not (all(below) or not any(below)) or self.null in self.mixture.values:
            raise ValueError("all alternatives lie on one side of a positive null ratio")
        if not self.logs:
            self.logs = [0.0] * len(self.mixture.values)

    def observe(self, new: bool, weight: float) -> None:
        """Count one first failure, from new or from old, at assignment probability `weight` (0 and 1 say nothing)."""
        if not 0.0 < weight < 1.0:
            return
        null = self.null
        base = _log(1 - weight + weight * null)
        logs = self.logs
        for at, ratio in enumerate(self.mixture.values):
            logs[at] += base - _log(1 - weight + weight * ratio) + (_log(ratio / null) if new else 0.0)

    def log_e(self) -> float:
        """The logarithm of E: evidence against the hypothesis."""
        return log_sum(self.logs, self.mixture.weights)


@attrs.define
class BudgetTest:
    """Is the share of keys that fail on new below (`budget`)?

    A trial is a key's first request on either version: it counts against new when new answered it and failed,
    which has probability w·p. So the test's clock is everybody's traffic, never the count of one version, and
    its hypothesis is p ≥ budget. It certifies a service that hardly ever fails, where a ratio has nothing to count.
    """

    budget: float
    mixture: Mixture
    logs: list[float] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.budget < 1 or max(self.mixture.values) >= 1:
            raise ValueError("a budget lies between 0 and 1, its alternatives are parts of it")
        if not self.logs:
            self.logs = [0.0] * len(self.mixture.values)

    def observe(self, failed_on_new: bool, weight: float) -> None:
        """Count one first request, made at assignment probability `weight`."""
        if not 0.0 < weight < 1.0:
            return
        logs = self.logs
        bad = weight * self.budget
        for at, part in enumerate(self.mixture.values):
            if failed_on_new:
                logs[at] += _log(part)
            else:
                logs[at] += _log1p(-bad * part) - _log1p(-bad)

    def log_e(self) -> float:
        """The logarithm of E: evidence that new stays below the budget."""
        return log_sum(self.logs, self.mixture.weights)


class FirstSeen:
    """Which keys have been counted, in bounded memory.

    When the table is full it keeps every second key by hash and from then on looks at those only: who is looked
    at depends on the key alone, never on the version it got, so the tests stay valid. Keys are 64-bit hashes.
    """

    __slots__ = ("_keys", "_limit", "_mask")

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise ValueError("at least two keys must fit")
        self._limit = limit
        self._mask = 0
        self._keys: set[int] = set()

    def add(self, key: int) -> bool:
        """Whether `key` is looked at and was not seen before; it is seen from now on."""
        keys = self._keys
        if key & self._mask or key in keys:
            return False
        while len(keys) >= self._limit:
            self._mask = self._mask << 1 | 1
            keys = self._keys = {kept for kept in keys if not kept & self._mask}
        if key & self._mask:
            return False
        keys.add(key)
        return True

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def share(self) -> float:
        """The part of all keys that is looked at: 1 until the table was full once."""
        return 1 / (self._mask + 1)
