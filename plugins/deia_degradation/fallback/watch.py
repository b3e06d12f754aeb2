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
    """The entries of one app in this process. Thread-safe."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.reset()

    def reset(self) -> None:
        """As never started (after a fork)."""
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Watched]] = []
        self._order = itertools.count().__next__
        self._running = False
        self._next = 0.0
        self._stir: asyncio.Event | None = None

    def add(self, entry: Watched) -> None:
        """Have `entry` called at its time. About 1 µs."""
        with self._lock:
            heapq.heappush(self._heap, (entry.at, self._order(), entry))
            if self._running:
                if entry.at >= self._next - _LEAST_SLEEP:
                    return
                stir = self._stir
            else:
                self._running = True
                stir = None
        if stir is None:
            self._host.runtime.submit(self._run)
        else:
            self._host.runtime.loop.call_soon_threadsafe(stir.set)

    async def _run(self) -> None:
        stir = self._stir = asyncio.Event()
        clock = self._host.clock.monotonic
        while True:
            due: list[Watched] = []
            with self._lock:
                now = clock()
                heap = self._heap
                while heap and (heap[0][2].over or heap[0][0] <= now):
                    entry = heapq.heappop(heap)[2]
                    if not entry.over:
                        due.append(entry)
                if not heap and not due:
                    self._running = False
                    return
                self._next = heap[0][0] if heap else now + 0.05
                pause = max(_LEAST_SLEEP, self._next - now)
                stir.clear()
            for entry in due:
                try:
                    entry.send(entry._run)
                except RuntimeError:  # its loop is gone, and its request with it
                    pass
            try:
                await asyncio.wait_for(stir.wait(), pause)
            except TimeoutError:
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
