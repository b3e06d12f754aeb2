"""Which of two bots to take: power of two choices on peak-EWMA latency × (in flight + 1), failures penalised.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); the peak-sensitive average follows
Finagle's `PeakEwma`: it jumps up with a slow answer at once and comes down over `tau` seconds. Least-in-flight
alone would prefer the bot that fails fastest, so each failure multiplies the cost for a while.
"""

from __future__ import annotations

from math import exp

import attrs

_LONGER, _SHORTER = 1.095, 0.995
"""What an answer above and one below the usual time do to it: in balance where one in twenty is above."""
_YOUNG = 16
"""Answers of which the slowest is the usual time."""
_PEAK = 1.5
"""How many times the usual time a peak counts for where somebody waits for it to be exceeded."""
_EQUAL = 0.001
"""Seconds below which a difference between two bots is noise."""


@attrs.frozen
class BalancePolicy:
    """`tau`: seconds over which a latency peak and a failure are forgotten; `penalty`: how many times dearer a
    bot is that fails always."""

    tau: float = 5.0
    penalty: float = 20.0


class Load:
    """How costly a bot is now. Not thread-safe: the pool's lock protects it."""

    __slots__ = ("failing", "in_flight", "latency", "stamp", "usual", "waiting", "young")

    def __init__(self) -> None:
        self.in_flight = 0
        self.latency = 0.0
        """Peak-EWMA in seconds, as of `stamp`; 0.0 while it has never answered."""
        self.usual = 0.0
        """Seconds that 19 of 20 answers stay below, followed step by step."""
        self.young = _YOUNG
        self.failing = 0.0
        """Average of recent failures, 0 to 1, as of `stamp`."""
        self.stamp = 0.0
        self.waiting = 0.0
        """Since when something has been in flight without any answer; of no meaning while nothing is."""

    def taken(self, now: float) -> None:
        """One more call is in flight."""
        if not self.in_flight:
            self.waiting = now
        self.in_flight += 1

    def observe(self, now: float, seconds: float, policy: BalancePolicy) -> None:
        """A good answer, that began after `seconds`."""
        elapsed = now - self.stamp
        share = elapsed / policy.tau
        keep = exp(-share) if share > 0.05 else 1.0 - share if share > 0.0 else 1.0
        self.stamp = self.waiting = now
        latency = self.latency * keep
        # The share of the newest answer is that of one 20th: the time-only rule of the original hardly moves at
        # hundreds of answers a second.
        self.latency = seconds if seconds >= latency else latency + (seconds - latency) * 0.05
        usual = self.usual
        if self.young:
            self.young -= 1
            self.usual = seconds if seconds > usual else usual
        elif seconds > usual:
            usual *= _LONGER
            self.usual = usual if usual < seconds else seconds
        else:
            self.usual = usual * _SHORTER
        if self.failing:
            self.failing *= keep * 0.9

    @property
    def expected(self) -> float:
        """Seconds that an answer may well take: the peak, but not one that a moment's stall has left behind."""
        return min(self.latency, _PEAK * self.usual)

    def failed(self, now: float, policy: BalancePolicy) -> None:
        """A failure. Its time says nothing: to fail quickly is not to be quick, to hang is not to be slow."""
        failing = self.failing * exp(min(0.0, self.stamp - now) / policy.tau)
        self.stamp = self.waiting = now
        self.failing = failing + (1.0 - failing) * 0.3

    def cost(self, now: float, policy: BalancePolicy, assumed: float, share: float = 1.0) -> float:
        """What one more request costs here; smaller is better.

        `assumed` seconds stand in for a latency that is not known yet. `share`: how many times as much as the mean
        of its peers it should have in flight.
        """
        age = now - self.stamp
        latency = self.latency
        if latency == 0.0:
            latency = assumed
        elif age > 1.0:  # not asked for a while: what was a peak is forgotten
            latency *= exp(-age / policy.tau)
        if self.in_flight and now - self.waiting > latency:  # it is at least as slow as that: a hung one says nothing
            latency = now - self.waiting
        cost = (latency + _EQUAL) * (self.in_flight / share + 1)
        if self.failing > 0.001:
            cost *= 1.0 + policy.penalty * self.failing * exp(-age / policy.tau)
        return cost
