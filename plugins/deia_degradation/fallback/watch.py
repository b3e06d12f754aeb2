"""One watcher for everything that is to happen later on a serving loop: hedges, time limits.

Not a timer per request: the background loop sleeps until the earliest entry, and only while there is one. Entries
that are over by then are dropped unseen; the others are called on the loop that they belong to.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

from deia_hardening.plugin import Host

_LEAST_SLEEP = 0.002
_NEVER = float("inf")


class Watched:
    """Something to call once at `at` (monotonic seconds) on the loop where it was made, unless `over` by then."""

    __slots__ = ("action", "at", "context", "over", "send")

    def __init__(self, at: float, action: Callable[[], None]) -> None:
        self.at = at
        self.action = action
        self.over = False
        self.context: contextvars.Context | None = contextvars.copy_context()
        self.send = sender()

    def drop(self) -> None:
        """It is over: nothing will be called, and what it referred to is let go at once."""
        self.over = True
        self.action = _nothing
        self.context = None

    def _run(self) -> None:
        context = self.context
        if context is not None:
            context.run(self.action)


def _nothing() -> None:
    return None


def sender() -> Callable[..., Any]:
    """What schedules a call on the loop that this is called on (asyncio or trio), from any thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        if "trio" not in sys.modules:
            raise
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon


class Watcher:
    """The entries of one app in this process. Thread-safe.

    One timer of the background loop, set for the earliest entry; requests that end in time never wake that loop.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.reset()

    def reset(self) -> None:
        """As never started (after a fork)."""
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Watched]] = []
        self._order = itertools.count().__next__
        self._next = _NEVER
        """When the next look is due; nobody looks while it is `_NEVER`."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Watched) -> None:
        """Have `entry` called at its time. About 1 µs."""
        with self._lock:
            heapq.heappush(self._heap, (entry.at, self._order(), entry))
            if entry.at >= self._next - _LEAST_SLEEP:
                return
            self._next = entry.at
        self._host.runtime.loop.call_soon_threadsafe(self._look, context=contextvars.Context())

    def _look(self) -> None:
        """Call what is due, and set the timer for what is next. On the background loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due: list[Watched] = []
        with self._lock:
            now = self._host.clock.monotonic()
            heap = self._heap
            last = _NEVER  # nothing was there: nobody looks until the next entry
            while heap and (heap[0][2].over or heap[0][0] <= now):
                last, _, entry = heapq.heappop(heap)
                if not entry.over:
                    due.append(entry)
            # With everything over, one more look when the last would have been due: until then entries that are
            # further off, as those of the next requests are, need not wake this loop.
            self._next = heap[0][0] if heap else last
            if self._next != _NEVER:
                self._next = max(self._next, now + _LEAST_SLEEP)
                self._timer = self._host.runtime.loop.call_later(self._next - now, self._look)
        for entry in due:
            try:
                entry.send(entry._run)
            except RuntimeError:  # its loop is gone, and its request with it
                pass


_kept: set[asyncio.Task[Any]] = set()


def spawn(function: Callable[[], Any]) -> None:
    """Run the coroutine function as a task of the loop that this is called on (asyncio or trio)."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        trio.lowlevel.spawn_system_task(function, context=contextvars.copy_context())
        return
    task = loop.create_task(function())
    _kept.add(task)
    task.add_done_callback(_kept.discard)
