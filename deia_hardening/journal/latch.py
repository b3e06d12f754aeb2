"""One-shot waiters for records to become durable, on any loop (asyncio, uvloop, trio) or thread.

Many waiters of one asyncio loop are woken by one `call_soon_threadsafe`; a waiter whose loop is gone is dropped.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable
from typing import Any, Protocol


class Waiter(Protocol):
    """Somebody who waits; `group` is what several can be woken through at once, or None."""

    group: Any

    def wake(self) -> None:
        """Wake this one. Any thread; raises RuntimeError where its loop is gone."""


class AsyncioWaiter:
    """Waits on the running asyncio loop."""

    __slots__ = ("future", "group")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.group = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        self.group.call_soon_threadsafe(_resolve, [self])

    async def wait(self) -> None:
        await self.future


class TrioWaiter:
    """Waits in the running trio task."""

    __slots__ = ("_event", "_token", "group")

    def __init__(self) -> None:
        import trio

        self.group = None
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def wake(self) -> None:
        self._token.run_sync_soon(self._event.set)  # trio.RunFinishedError is a RuntimeError

    async def wait(self) -> None:
        await self._event.wait()


class ThreadWaiter:
    """Waits by blocking a thread."""

    __slots__ = ("_lock", "group")

    def __init__(self) -> None:
        self.group = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        return self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))


def loop_waiter() -> AsyncioWaiter | TrioWaiter:
    """A waiter for the loop that runs here. Raises RuntimeError outside of one."""
    try:
        return AsyncioWaiter(asyncio.get_running_loop())
    except RuntimeError:
        if "trio" in sys.modules:
            return TrioWaiter()
        raise


def wake_all(waiters: Iterable[Waiter]) -> None:
    """Wake everybody, from any thread."""
    groups: dict[Any, list[AsyncioWaiter]] = {}
    for waiter in waiters:
        if isinstance(waiter, AsyncioWaiter):
            groups.setdefault(waiter.group, []).append(waiter)
            continue
        try:
            waiter.wake()
        except RuntimeError:
            pass
    for loop, members in groups.items():
        try:
            loop.call_soon_threadsafe(_resolve, members)
        except RuntimeError:  # the loop is closed
            pass


def _resolve(waiters: list[AsyncioWaiter]) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_result(None)
