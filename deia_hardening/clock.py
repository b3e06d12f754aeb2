"""One clock for everybody: wall time, monotonic time and sleeping.

Nothing else in the package reads the time or sleeps, so a test that replaces the clock replaces time itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall and monotonic time in seconds, and a sleep on the background loop."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back within a boot."""

    async def sleep(self, seconds: float) -> None:
        """Wait on the background loop. Not for use on the request path."""


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    wall = staticmethod(time.time)
    wall_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()
