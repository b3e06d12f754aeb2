"""What a rollout knows of its candidate: the judge's evidence, readiness, the error budget, requests that hang.

Fed by the layers from any thread. A failure is judged where it happens, so the request that condemns a version is the
last one that it gets in this process; everything else goes through a bounded queue to the background loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b

import attrs

from deia_migration.judge import Decision, Judge, Verdict
from deia_migration.keys import network_of
from deia_migration.outcome import Outcome, told
from deia_migration.plan import Guards, Plan
from deia_migration.settings import MigrationSettings
from deia_migration.traffic import Version

_monotonic = time.monotonic

RECENT = 1000
"""Answers of each version whose waits are kept, for the p99 that people see."""

KEYS = 4096
"""Judged keys that are kept with whom they stand for: most callers come again."""

_AT_ONCE = 32
"""Outcomes that are taken in at once: a failure, which is judged in its request, waits for no more than those."""

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

    def __init__(
        self,
        settings: MigrationSettings,
        plan: Plan,
        wake: Callable[[], None],
        judges: Callable[[], bool] = lambda: True,
    ) -> None:
        """`judges` says whether this worker drives; one that does not hands its outcomes over (`hand_over`)."""
        self._judges = judges
        self._settings = settings
        self._guards: Guards = plan.guards
        self._judge = Judge(plan.judge.rules(settings.judged_keys))
        self._queue: deque[Outcome] = deque(maxlen=settings.outcomes)
        self._wake = wake
        self._lock = threading.Lock()  # held for some microseconds, on failures and per outcome taken in
        self.condemned: Callable[[], None] = lambda: None
        self._old_waits: list[float] = []
        self._window: deque[tuple[float, int, bool]] = deque()
        self.frozen_p99 = 0.0
        self._keys: dict[tuple[str, bool], int] = {}
        self._exposed: set[tuple[str, bool]] = set()
        """Callers whose keys the judge has counted: at most `KEYS`."""
        self._recent: tuple[deque[float], deque[float]] = (deque(maxlen=RECENT), deque(maxlen=RECENT))
        self.counts = Counts()

    def tell(self, outcome: Outcome) -> None:
        """Take one outcome: a deque's append; a failure is judged at once, and calls `condemned` when it decides."""
        if outcome[4] and self._judges():
            with self._lock:
                changed = self._take(outcome, _monotonic())
                decided = changed and self._judge.verdict().decision is Decision.ROLL_BACK
            if decided:
                self.condemned()
            self._wake()
            return
        queue = self._queue
        if len(queue) == queue.maxlen:
            self.counts.dropped += 1
        queue.append(outcome)
        if outcome[4]:
            self._wake()

    def take_over(self, outcome: Outcome) -> None:
        """Take what another worker saw; its clock for "slow" is the same, its answers count as ours."""
        self.tell(outcome)

    def hand_over(self) -> list[Outcome]:
        """Everything that has come since the last call, for the worker that judges."""
        queue, found = self._queue, []
        while queue:
            outcome = queue.popleft()
            found.append(outcome)
            self._count(outcome)
        return found

    def hung(self, versions: tuple[Version, Version], now: float) -> None:
        """Count requests that have had no answer for too long, once each, on stable or candidate."""
        limit = self._guards.hang
        if not limit:
            return
        for new, version in enumerate(versions):
            for task, (context, weight) in list(version.flights.items()):
                if (
                    weight >= 0
                    and task not in version.counted
                    and not context.status
                    and now - context.received > limit
                ):
                    version.counted.add(task)
                    self.tell(told(context, bool(new), weight, True, -1.0))

    def judge(self, now: float) -> Verdict:
        """Take in what has come, and decide."""
        queue = self._queue
        while queue:
            with self._lock:
                for _ in range(min(len(queue), _AT_ONCE)):
                    self._take(queue.popleft(), now)
        with self._lock:
            return self._judge.verdict()

    def _take(self, outcome: Outcome, now: float) -> bool:
        new, weight, who, network, bad, waited = outcome
        self._count(outcome)
        if not new and waited >= 0 and not self.frozen_p99:
            self._learn_p99(waited)
        slow = 0 < self.frozen_p99 < waited
        if 0 < weight < 1:
            if not (bad or slow):
                exposed = self._exposed
                if (who, network) in exposed:  # a good answer says nothing of a key that is counted: most are
                    return False
                if len(exposed) >= KEYS:
                    exposed.clear()
                exposed.add((who, network))
            return self._judge.record(key=self.key_of(who, network), new=new, weight=weight, failed=bad, slow=slow)
        if new:
            self._window.append((now, self.key_of(who, network), bad))
        return False

    def _count(self, outcome: Outcome) -> None:
        counts = self.counts
        new, _, _, _, bad, waited = outcome
        if new:
            counts.new += 1
            counts.new_failed += bad
        else:
            counts.old += 1
            counts.old_failed += bad
        if waited >= 0:
            self._recent[new].append(waited)
            if new:
                counts.new_waited += (waited - counts.new_waited) / ((counts.new - counts.new_failed) or 1)
            else:
                counts.old_waited += (waited - counts.old_waited) / ((counts.old - counts.old_failed) or 1)

    def _learn_p99(self, waited: float) -> None:
        waits = self._old_waits
        waits.append(waited)
        if len(waits) >= P99_SAMPLES:
            waits.sort()
            self.frozen_p99 = waits[math.ceil(0.99 * len(waits)) - 1]
            waits.clear()

    def figures(self) -> dict[str, float]:
        """The counts, and each version's p99 of its last answers, in seconds; for people."""
        shown: dict[str, float] = attrs.asdict(self.counts)
        for name, waits in zip(("old", "new"), self._recent, strict=True):
            ordered = sorted(waits)
            shown[f"{name}_p99"] = ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0
        return shown

    def key_of(self, who: str, network: bool) -> int:
        """The judged key: an authenticated actor, else a network prefix, as a 64-bit hash."""
        found = self._keys.get((who, network))
        if found is None:
            if len(self._keys) >= KEYS:
                self._keys.clear()
            found = self._keys[who, network] = self._hashed(who, network)
        return found

    def _hashed(self, who: str, network: bool) -> int:
        if network:
            who = network_of((who,), self._settings.network_ipv4, self._settings.network_ipv6) or "nobody"
        kind = b"net" if network else b"act"
        return int.from_bytes(blake2b(who.encode("utf-8", "surrogatepass"), digest_size=8, person=kind).digest(), "big")

    def over_budget(self, now: float) -> str:
        """At 100%: why the error budget is gone, or ""."""
        guards = self._guards
        with self._lock:
            window = self._window
            return self._over_budget(guards, window, now)

    def _over_budget(self, guards: Guards, window: deque[tuple[float, int, bool]], now: float) -> str:
        while window and (now - window[0][0] > guards.budget_window or len(window) > self._settings.outcomes):
            window.popleft()
        if not any(failed for _, _, failed in window):
            return ""
        keys = {key for _, key, _ in window}
        bad = {key for _, key, failed in window if failed}
        if len(bad) >= guards.budget_keys and len(bad) >= guards.budget * len(keys):
            return f"{len(bad)} of {len(keys)} users failed within {guards.budget_window} at 100%"
        return ""
