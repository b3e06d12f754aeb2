"""What a rollout knows of its candidate: the judge's evidence, readiness, the error budget, requests that hang.

Fed by the layers from any thread through a bounded queue, read on the background loop. A failure wakes the rollout at
once; everything else waits for the next look.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import blake2b

import attrs

from deia_migration.judge import Decision, Judge, Verdict
from deia_migration.keys import network_of
from deia_migration.outcome import Outcome, told
from deia_migration.plan import Guards, Plan
from deia_migration.settings import MigrationSettings
from deia_migration.traffic import Version

P99_SAMPLES = 300
"""Answers of the old version after which its p99 is frozen: its standard error is then some 0.6 percentage points."""


@attrs.define
class Counts:
    """Requests, for people; the judge counts keys."""

    new: int = 0
    new_failed: int = 0
    old: int = 0
    old_failed: int = 0
    dropped: int = 0
    new_waited: float = 0.0
    old_waited: float = 0.0


class Watcher:
    """Collects one rollout's outcomes. `tell` may be called from any thread; the rest on the background loop."""

    def __init__(self, settings: MigrationSettings, plan: Plan, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._guards: Guards = plan.guards
        self._judge = Judge(plan.judge.rules(settings.judged_keys))
        self._queue: deque[Outcome] = deque(maxlen=settings.outcomes)
        self._wake = wake
        self._salt = b""
        self._old_waits: list[float] = []
        self._window: deque[tuple[float, int, bool]] = deque()
        self.frozen_p99 = 0.0
        self.counts = Counts()
        self.told_to: Callable[[Outcome], None] | None = None

    def tell(self, outcome: Outcome) -> None:
        """Take one outcome: a deque's append, and a wake-up when it is a failure."""
        queue = self._queue
        if len(queue) == queue.maxlen:
            self.counts.dropped += 1
        queue.append(outcome)
        if outcome.failed:
            self._wake()

    def hung(self, versions: Iterable[Version], now: float) -> None:
        """Count requests that have had no answer for too long, once each, on either version."""
        limit = self._guards.hang
        if not limit:
            return
        for version in versions:
            for flight in list(version.flights):
                if (
                    not flight.counted
                    and flight.weight >= 0
                    and not flight.context.exchange.status
                    and now - flight.context.received > limit
                ):
                    flight.counted = True
                    self._queue.append(told(flight, True, -1.0))

    def judge(self, now: float) -> Verdict:
        """Take in what has come, and decide."""
        queue = self._queue
        while queue:
            try:
                outcome = queue.popleft()
            except IndexError:
                break
            self._take(outcome, now)
            if outcome.failed and self._judge.verdict().decision is Decision.ROLL_BACK:
                break  # decided: what is still waiting can't change a rollback
        return self._judge.verdict()

    def _take(self, outcome: Outcome, now: float) -> None:
        counts = self.counts
        slow = False
        waited = outcome.waited
        if outcome.new:
            counts.new += 1
            counts.new_failed += outcome.failed
        else:
            counts.old += 1
            counts.old_failed += outcome.failed
        if waited >= 0:
            if outcome.new:
                counts.new_waited += (waited - counts.new_waited) / max(1, counts.new - counts.new_failed)
            else:
                counts.old_waited += (waited - counts.old_waited) / max(1, counts.old - counts.old_failed)
                if not self.frozen_p99:
                    self._learn_p99(waited)
            slow = 0 < self.frozen_p99 < waited
        key = self.key_of(outcome)
        if 0 < outcome.weight < 1:
            self._judge.record(key=key, new=outcome.new, weight=outcome.weight, failed=outcome.failed, slow=slow)
        elif outcome.new:
            self._window.append((now, key, outcome.failed))

    def _learn_p99(self, waited: float) -> None:
        waits = self._old_waits
        waits.append(waited)
        if len(waits) >= P99_SAMPLES:
            waits.sort()
            self.frozen_p99 = waits[math.ceil(0.99 * len(waits)) - 1]
            waits.clear()

    def key_of(self, outcome: Outcome) -> int:
        """The judged key: an authenticated actor, else a network prefix, as a 64-bit hash."""
        who = outcome.who
        if outcome.network:
            who = network_of((who,), self._settings.network_ipv4, self._settings.network_ipv6) or "nobody"
        digest = blake2b(
            who.encode("utf-8", "surrogatepass"), digest_size=8, person=b"net" if outcome.network else b"act"
        )
        return int.from_bytes(digest.digest(), "big")

    def over_budget(self, now: float) -> str:
        """At 100%: why the error budget is gone, or ""."""
        guards = self._guards
        window = self._window
        while window and (now - window[0][0] > guards.budget_window or len(window) > self._settings.outcomes):
            window.popleft()
        if not any(failed for _, _, failed in window):
            return ""
        keys = {key for _, key, _ in window}
        bad = {key for _, key, failed in window if failed}
        if len(bad) >= guards.budget_keys and len(bad) >= guards.budget * len(keys):
            return f"{len(bad)} of {len(keys)} users failed within {guards.budget_window} at 100%"
        return ""
