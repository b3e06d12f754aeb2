"""A clock that a test moves: time stands still until `advance`."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading

from deia_hardening.runtime import Latch


class FakeClock:
    """Wall and monotonic time under the test's control; sleepers wake when `advance` passes their time.

    Thread-safe: sleepers may wait on any loop while the test advances from another.
    """

    def __init__(self, wall: float = 1_700_000_000.0, monotonic: float = 1000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, int, Latch]] = []
        self._order = itertools.count()

    def wall(self) -> float:
        return self._wall

    def wall_ns(self) -> int:
        return int(self._wall * 1e9)

    def monotonic(self) -> float:
        return self._monotonic

    def jump(self, seconds: float) -> None:
        """Move wall time only, as an administrator or NTP does."""
        self._wall += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass, waking those whose sleep is over, in order."""
        with self._lock:
            self._wall += seconds
            self._monotonic += seconds
            due = []
            while self._sleepers and self._sleepers[0][0] <= self._monotonic:
                due.append(heapq.heappop(self._sleepers)[2])
        for latch in due:
            latch.set()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        latch = Latch()
        with self._lock:
            heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), latch))
        await latch.wait()

    @property
    def sleeping(self) -> int:
        """How many sleepers wait now."""
        return len(self._sleepers)
