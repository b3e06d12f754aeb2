"""Which of two bots to take: power of two choices on peak-EWMA latency × (in flight + 1), failures penalised.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); the peak-sensitive average follows
Finagle's `PeakEwma`: it jumps up with a slow answer at once and comes down over `tau` seconds. Least-in-flight
alone would prefer the bot that fails fastest, so each failure multiplies the cost for a while.
"""

from __future__ import annotations

from math import exp

import attrs


@attrs.frozen
class BalancePolicy:
    """`tau`: seconds over which a latency peak and a failure are forgotten; `penalty`: how many times dearer a
    bot is that fails always."""

    tau: float = 5.0
    penalty: float = 20.0


class Load:
    """How costly a bot is now. Not thread-safe: the pool's lock protects it."""

    __slots__ = ("failing", "in_flight", "latency", "stamp")

    def __init__(self) -> None:
        self.in_flight = 0
        self.latency = 0.0
        """Peak-EWMA in seconds, as of `stamp`; 0.0 while it has never answered."""
        self.failing = 0.0
        """Average of recent failures, 0 to 1, as of `stamp`."""
        self.stamp = 0.0

    def observe(self, now: float, seconds: float, failed: bool, policy: BalancePolicy) -> None:
        """An answer, or its absence, after `seconds`."""
        elapsed = now - self.stamp
        keep = exp(-elapsed / policy.tau) if elapsed > 0.0 else 1.0
        self.stamp = now
        latency = self.latency * keep
        # The share of the newest answer is that of one 20th, or more after a pause: the time-only rule of the
        # original hardly moves at hundreds of answers a second.
        self.latency = seconds if seconds >= latency else latency + (seconds - latency) * 0.05
        failing = self.failing * keep
        self.failing = failing + (1.0 - failing) * 0.3 if failed else failing * 0.9

    def cost(self, now: float, policy: BalancePolicy, assumed: float, penalise: bool = True) -> float:
        """What one more request costs here; smaller is better.

        `assumed` seconds stand in for a latency that is not known yet. Without `penalise` failures don't count:
        what can be repeated elsewhere at once goes on to a suspect, so that it is found guilty or innocent soon,
        while everything else avoids it.
        """
        age = now - self.stamp
        latency = self.latency
        if latency == 0.0:
            latency = assumed
        elif age > 1.0:  # not asked for a while: what was a peak is forgotten
            latency *= exp(-age / policy.tau)
        cost = (latency + 1e-6) * (self.in_flight + 1)
        if penalise and self.failing > 0.001:
            cost *= 1.0 + policy.penalty * self.failing * exp(-age / policy.tau)
        return cost
