"""Keeps a flood of refusals of unknown callers from filling the disk: beyond a rate they are counted and
summed up.

Pure, apart from the monotonic time that it is given. One writer at a time is not required: a lost count under
a thread switch is bounded by the number of serving threads.
"""

from __future__ import annotations


class FloodGate:
    """A token bucket over refusals, and the counts of what did not pass it."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.rate = rate
        self.burst = float(burst)
        self._tokens = float(burst)
        self._at = now
        self.since = 0.0
        self.counts: dict[tuple[int, str], int] = {}

    def passes(self, status: int, route: str, now: float) -> bool:
        """Return whether this refusal is recorded by itself; otherwise it is counted by status and route."""
        tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if tokens >= 1:
            self._tokens = tokens - 1
            return True
        self._tokens = tokens
        if not self.counts:
            self.since = now
        key = (status, route)
        if key not in self.counts and len(self.counts) >= 64:
            key = (0, "other")
        self.counts[key] = self.counts.get(key, 0) + 1
        return False

    def take(self) -> dict[tuple[int, str], int]:
        """Return the counts and begin anew."""
        counts, self.counts = self.counts, {}
        return counts
