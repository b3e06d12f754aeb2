"""How many requests may run at once: a limit learned from latency alone, pure and without a clock of its own.

Its parts: the additive steps by queue estimate of TCP Vegas (Brakmo and Peterson, 1995), as Netflix's
concurrency-limits uses them; a baseline that comes down quickly and goes up only by proof. The proof is an
experiment: when the typical latency is high, the limit is cut by a quarter. If the latency came down with it there
was a queue, and the cut stays. If not, the backend is slower and nobody queues: the latency is the new baseline and
the limit is restored. Growth must pay as well: a limit that grew by a third without more throughput is tried with
a cut, which keeps it from drifting upward for hours as gradients do. What crosses the deadline is cut in any case.
"""

from __future__ import annotations

import enum
from math import sqrt

import attrs


@attrs.frozen
class LimitPolicy:
    """How the limit is learned. Times are seconds; none of it needs tuning, all of it is published."""

    initial: float = 20.0
    minimum: float = 2.0
    maximum: float = 2000.0
    window: float = 0.25
    """The shortest time over which latencies are looked at."""
    longest_window: float = 5.0
    longest_settle: float = 60.0
    """The longest time that what an old limit let in is given to end, before the new one is judged."""
    samples: int = 100
    """Answers that a window wants to see (it ends with fewer after `longest_window`)."""
    latencies: float = 2.0
    """A window with fewer lasts at least this many typical latencies."""
    most_samples: int = 400
    """Latencies kept per window."""
    grow_below: float = 1.45
    """The limit grows while the typical latency is below this many baselines …"""
    cut_above: float = 1.75
    """… and an experiment starts when it is above this many, twice."""
    cut: float = 0.75
    sensitive: float = 0.13
    """An experiment shows a queue when the latency fell by at least this part (all of it queue: a quarter)."""
    knee: float = 0.2
    """In a chain of experiments, a fall between `sensitive` and this ends it: the queue's end was crossed."""
    start_growth: float = 1.5
    """The factor per window until the first sign of a queue."""
    payback: float = 0.25
    """Growth by a factor f must raise the throughput by f to the power of this."""
    deadline_share: float = 0.8
    """The part of the deadline that p90 may use."""


_LEAST = 5
"""Answers without which a window says nothing, however long it lasts."""


class Phase(enum.Enum):
    """What the limit is doing."""

    START = "start"
    STEADY = "steady"
    CUT = "cut"
    """An experiment runs."""


@attrs.frozen
class Window:
    """What one window saw. `saturated`: the limit was reached. `peak`: most requests at once.

    `typical` is the mean with everything above p90 counted as p90: the median jumps where answers are of two kinds,
    the plain mean follows the slowest few.
    """

    typical: float
    p90: float
    rate: float
    count: int
    peak: int
    saturated: bool


class AdaptiveLimit:
    """The limit and what it has learned. Not thread-safe but for `latencies`: the gate's lock protects it."""

    def __init__(self, policy: LimitPolicy = LimitPolicy()) -> None:
        self.policy = policy
        self.value = float(policy.initial)
        self.limit = int(self.value)
        """What counts: at least 1."""
        self.baseline = 0.0
        """The typical latency without a queue, in seconds; 0.0 before the first window."""
        self.phase = Phase.START
        self.last: Window | None = None
        self.latencies: list[float] = []
        """Of the requests that worked and ended in this window; whoever ends one appends, in one step."""
        self.due = 0.0
        """When `look` has to be called next, by whoever ends a request then."""
        self._settling = False
        self._opened = 0.0
        self._until = 0.0
        """When the window may close, if it has enough samples."""
        self._latest = 0.0
        self._high = 0
        self._before = 0.0
        self._before_typical = 0.0
        self._top = 0.0
        self._best_rate = 0.0
        self._chain = False
        self._anchor = 0.0
        self._anchor_rate = 0.0
        self._guard_off_until = 0.0

    def adopt(self, policy: LimitPolicy) -> None:
        """Go on under another policy, from what was learned."""
        self.policy = policy
        self._set(self.value)
        self.limit = max(1, int(self.value))

    def restart(self) -> None:
        """Begin at the policy's `initial` again: what is behind the limit is not what it was."""
        self.phase = Phase.START
        self._anchor = self._anchor_rate = 0.0
        self._high = 0
        self._set(self.policy.initial)
        self.limit = max(1, int(self.value))

    # -- windows -------------------------------------------------------------------------------------------

    def look(self, now: float, peak: int, saturated: bool, deadline: float | None = None) -> bool:
        """`due` has come. True when a window closed: the limit may be another one, and `peak` begins anew.

        `peak`: the most requests at once in this window; `saturated`: the limit was reached. `deadline` is the
        seconds that such requests have. 30 µs where a window closes.
        """
        if now < self.due:
            return False
        if self._settling:  # what the old limit let in is over, or is forgotten from time to time
            self._settling = now < self._opened
            del self.latencies[: None if self._settling else -1]
            self.due = min(self._opened, now + self.policy.window) if self._settling else self._until
            return False
        count = len(self.latencies)
        # A verdict that stands alone gets twice the answers; in a chain the next experiment checks the last.
        wanted = self.policy.samples * (2 if self.phase is Phase.CUT and not self._chain else 1)
        if now < self._latest and count < wanted:
            # Again when most of what is missing has probably come, and soon: traffic may jump.
            missing = (wanted - count) / max(1, count) * (now - self._opened)
            self.due = min(self._latest, now + min(0.8 * missing, self.policy.window))
            return False
        return self._close(now, peak, saturated, deadline)

    def _close(self, now: float, peak: int, saturated: bool, deadline: float | None) -> bool:
        policy = self.policy
        values = self.latencies[: policy.most_samples]
        if len(values) < _LEAST:  # few and long calls: wait on, unless what was seen is from another time
            if not self._until or now - self._opened > policy.longest_window + 20.0 * max(values, default=0.0):
                self._open(now, 0.0)
                return True
            return False
        values.sort()
        count = len(values)
        cap = int(count * 0.9)
        p90 = values[cap]
        window = Window(
            typical=max(1e-6, (sum(values[:cap]) + (count - cap) * p90) / count),
            p90=p90,
            rate=len(self.latencies) / max(1e-9, now - self._opened),
            count=len(self.latencies),
            peak=peak,
            saturated=saturated,
        )
        self.last = window
        before = self.value
        self.observe(window, now, deadline)
        # After a change, what was admitted under the old limit is let pass before anything is measured.
        self._open(now, min(window.p90, policy.longest_settle) if self.value != before else 0.0)
        return True

    def _open(self, now: float, settle: float) -> None:
        policy = self.policy
        self.latencies = []
        self._opened = now + settle
        self._until = self._opened + policy.window
        # Long calls come few at a time: a window that is short beside them would judge by a handful.
        long = self.last.typical * policy.latencies if self.last is not None else 0.0
        self._latest = self._opened + max(policy.longest_window, long)
        self._settling = settle > 0.0
        self.due = min(self._opened, now + policy.window) if self._settling else self._until

    # -- the decision --------------------------------------------------------------------------------------

    def observe(self, window: Window, now: float, deadline: float | None = None) -> float:
        """Learn from one window and return the new limit (a float; `limit` is what counts)."""
        if self.baseline == 0.0:
            self.baseline = window.typical
        if self.phase is Phase.CUT:
            self._judge(window, now)
        elif self._threatens(window, now, deadline):
            self._experiment(window, chain=False)
        else:
            self._learn_baseline(window)
            if window.saturated:
                self._step(window)
            else:
                self._high = 0
        self.limit = max(1, int(self.value))
        return self.value

    def _threatens(self, window: Window, now: float, deadline: float | None) -> bool:
        if deadline is None or now < self._guard_off_until:
            return False
        return window.p90 > deadline * self.policy.deadline_share

    def _learn_baseline(self, window: Window) -> None:
        typical = window.typical
        if typical < self.baseline:
            self.baseline += (typical - self.baseline) * 0.3
        elif not window.saturated and window.peak * 2 < self.limit:
            # Below half use nobody queues here: whatever it takes is what it takes.
            self.baseline += (typical - self.baseline) * 0.1

    def _step(self, window: Window) -> None:
        policy = self.policy
        inflation = window.typical / self.baseline
        if self.phase is Phase.START:
            if not self._anchor:
                self._re_anchor(window)
            elif self.value > self._anchor * 1.2:
                if not self._paid(window):
                    self.phase = Phase.STEADY
                    self._experiment(window, chain=True)
                    return
                self._re_anchor(window)
            if inflation < policy.grow_below:
                self._set(self.value * policy.start_growth)
                return
            self.phase = Phase.STEADY
            self._experiment(window, chain=True)
            return
        if inflation > policy.cut_above:
            self._high += 1
            if self._high >= 2:
                self._experiment(window, chain=False)
            return
        self._high = 0
        if inflation < policy.grow_below:
            if self._anchor and self.value > self._anchor * 1.33:
                if not self._paid(window):
                    self._experiment(window, chain=True)
                    return
                self._re_anchor(window)
            self._set(self.value + max(1.0, sqrt(self.value) * 0.5))

    def _paid(self, window: Window) -> bool:
        growth: float = (self.value / self._anchor) ** self.policy.payback
        return window.rate >= self._anchor_rate * growth

    def _re_anchor(self, window: Window) -> None:
        self._anchor = self.value
        self._anchor_rate = window.rate

    def _experiment(self, window: Window, *, chain: bool) -> None:
        """Cut the limit, and look at the next window. `chain`: go on while it helps."""
        self._high = 0
        if self.value <= self.policy.minimum:
            return
        if self.phase is not Phase.CUT:
            self._top = self.value
            self._best_rate = 0.0
        self._before = self.value
        self._before_typical = window.typical
        self._best_rate = max(self._best_rate, window.rate)
        self._chain = chain
        self.phase = Phase.CUT
        self._set(self.value * self.policy.cut)

    def _judge(self, window: Window, now: float) -> None:
        fell = 1.0 - window.typical / self._before_typical
        self._best_rate = max(self._best_rate, window.rate)
        if fell < self.policy.sensitive:
            # It was not a queue: this is how long it takes now, and so many were in progress at the best rate.
            self.phase = Phase.STEADY
            self.baseline = min(window.typical, self._before_typical)
            self._set(max(self._before, min(self._top, self._best_rate * self.baseline)))
            self._anchor = self.value
            self._anchor_rate = window.rate / sqrt(self.policy.cut)
            self._guard_off_until = now + 30.0
        elif self._chain and fell < self.policy.knee:
            # Some of the cut was queue, some was work: the end of the queue lies between the two limits.
            self.phase = Phase.STEADY
            self.baseline = window.typical
            self._set(self._before * (1.0 - fell))
            self._re_anchor(window)
        else:
            self._re_anchor(window)
            if self._chain:
                self._experiment(window, chain=True)
            else:
                self.phase = Phase.STEADY

    def _set(self, value: float) -> None:
        self.value = min(self.policy.maximum, max(self.policy.minimum, value))
