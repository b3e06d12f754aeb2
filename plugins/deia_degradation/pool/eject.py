"""Whether a bot does worse than its peers: a sequential test (CUSUM) on failures, pure and constant-time.

Page's CUSUM (Biometrika 41, 1954) of the log-likelihood ratio "fails much more often than its peers do" against
"fails as its peers do". The peers' rate is an upper estimate from a slow average and from what they did since this
bot's suspicion began, so an outage that everybody shares raises the bar for everybody and ejects nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log, sqrt

import attrs

_PASS = log(2.0)
"""What a good answer takes away: the suspected failure rate is half-way from the expected one to 1, so a good
answer is always half as likely under suspicion."""

_KEEP = 15.0 / 16.0


@attrs.frozen
class EjectPolicy:
    """What it takes to be out.

    `threshold` is the evidence in nats: more than exp(threshold) requests pass between false alarms. `floor` is
    the failure rate that is always forgiven, `memory` the number of requests that the slow averages span,
    `peer_successes` how many good answers the peers must have given since the suspicion began: with fewer it may
    be everybody.
    """

    threshold: float = 14.5
    floor: float = 0.002
    memory: float = 1000.0
    peer_successes: int = 3


class Evidence:
    """What is known about one bot. Not thread-safe: the pool's lock protects it."""

    __slots__ = ("_peers_bad", "_peers_good", "bad", "count", "failed", "gain", "good", "passed", "rate", "recent")

    def __init__(self) -> None:
        self.rate = 0.0
        """Slow average of its failures, over the last `count` requests."""
        self.count = 0.0
        self.recent = 0.0
        """Fast average of its failures, over some 16 requests."""
        self.good = 0
        """All its good answers and failures so far; they never go back, since the peers' marks refer to them."""
        self.bad = 0
        self.failed = 0
        """Failures and good answers since the suspicion began; both 0 without one."""
        self.passed = 0
        self.gain = 0.0
        """What one failure weighs, by the newest estimate of the peers' rate."""
        self._peers_good = 0
        self._peers_bad = 0

    @property
    def score(self) -> float:
        """The evidence against the bot, in nats."""
        return max(0.0, self.failed * self.gain - self.passed * _PASS)

    def forgive(self) -> None:
        """Start over (a probe succeeded). The averages stay: the peers are measured by them."""
        self.failed = self.passed = 0

    def succeeded(self, policy: EjectPolicy) -> None:
        """One good answer."""
        self.good += 1
        count = self.count
        if count < policy.memory:
            self.count = count = count + 1.0
        self.rate -= self.rate / count
        self.recent *= _KEEP
        if self.failed:
            self.passed += 1
            if self.failed * self.gain <= self.passed * _PASS:
                self.failed = self.passed = 0

    def failure(self, peers: Iterable[Evidence], policy: EjectPolicy) -> bool:
        """One failure: whether the bot is to be ejected. `peers` are the other bots in service."""
        self.bad += 1
        count = self.count
        if count < policy.memory:
            self.count = count = count + 1.0
        self.rate += (1.0 - self.rate) / count
        self.recent = self.recent * _KEEP + (1.0 - _KEEP)
        good = bad = number = 0
        weight = rate = recent = 0.0
        for peer in peers:
            good += peer.good
            bad += peer.bad
            weight += peer.count
            rate += peer.rate * peer.count
            recent += peer.recent
            number += 1
        if not self.failed:
            self._peers_good = good
            self._peers_bad = bad
        self.failed += 1
        good -= self._peers_good
        bad -= self._peers_bad
        expected = upper_rate(rate / weight if weight else 0.0, weight, policy.floor)
        if bad > 0 and good >= 0:  # a peer that left takes its counts along: then only the averages speak
            expected = max(expected, (bad + 1.0) / (good + bad + 2.0))
        if number:
            expected = max(expected, min(0.98, recent / number))
        self.gain = log((0.5 + 0.5 * expected) / expected)
        return good >= policy.peer_successes and self.score >= policy.threshold


def upper_rate(rate: float, count: float, floor: float) -> float:
    """An upper estimate (two standard errors) of a failure rate seen over `count` requests, at least `floor`."""
    if count < 1.0:
        return max(rate, floor)
    return min(0.98, max(floor, rate + 2.0 * sqrt(max(0.0, rate * (1.0 - rate)) / count)))
