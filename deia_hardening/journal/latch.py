"""One-shot waiters for records to become durable, on any loop (asyncio, uvloop, trio) or thread.

All waiters of one asyncio loop are woken by one `call_soon_threadsafe`; a waiter whose loop is gone is dropped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from deia_hardening.journal.inlet import Receipt


class Waiter(Protocol):
    """Somebody who waits in another way than on an asyncio loop."""

    def wake(self) -> None:
        """Wake this one. Any thread; raises RuntimeError where its loop is gone."""


Waiting: TypeAlias = "tuple[Receipt, asyncio.AbstractEventLoop | None, Any]"
"""Whose record, and an asyncio loop with its future, or None with a Waiter."""


class TrioWaiter:
    """Waits in the running trio task."""

    __slots__ = ("_event", "_token")

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def wake(self) -> None:
        self._token.run_sync_soon(self._event.set)  # trio.RunFinishedError is a RuntimeError

    async def wait(self) -> None:
        await self._event.wait()


class ThreadWaiter:
    """Waits by blocking a thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        return self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))


def wake_all(waiting: Iterable[Waiting]) -> None:
    """Wake everybody, from any thread."""
    groups: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, loop, waiter in waiting:
        if loop is None:
            try:
                waiter.wake()
            except RuntimeError:
                pass
        elif loop in groups:
            groups[loop].append(waiter)
        else:
            groups[loop] = [waiter]
    for loop, futures in groups.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:  # the loop is closed
            pass


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
