"""The result of a write that is on its way to the disk.

`await` it on any loop (asyncio, uvloop, trio) or ask `result()` in a plain thread. Waiting is what hurries the writer;
a whole group of results wakes each loop once, which is most of what group commit saves on the serving loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_lock = threading.Lock()


class Hurried(Protocol):
    """Who works on a pending: told when somebody waits for it."""

    def ring(self) -> None:
        """Begin now. Never blocks."""

    def lead(self, pending: Pending[Any]) -> bool:
        """Work on the calling plain thread until `pending` is done; False when another thread is at it."""


class _ThreadWaiter:
    __slots__ = ("gate",)

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()


class _TrioWaiter:
    __slots__ = ("event", "token")

    def __init__(self) -> None:
        import trio

        self.token = trio.lowlevel.current_trio_token()
        self.event = trio.Event()


class Pending(Generic[T]):
    """One result to come. It is done when it is on disk, or refused with nothing written."""

    __slots__ = ("_convert", "_done", "_error", "_value", "_waiters", "_writer")

    def __init__(self, writer: Hurried | None = None) -> None:
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[Any] | None = None
        self._convert: Callable[[Any], T] | None = None
        self._writer = writer

    def then(self, convert: Callable[[T], U]) -> Pending[U]:
        """Pass the result through `convert` (quick, on the waiter's side)."""
        before = self._convert
        self._convert = convert if before is None else lambda value: convert(before(value))  # type: ignore[assignment]
        return self  # type: ignore[return-value]

    def done(self) -> bool:
        return self._done

    def _unwrap(self) -> T:
        error = self._error
        if error is not None:
            raise error
        convert = self._convert
        return self._value if convert is None else convert(self._value)

    def __await__(self) -> Generator[Any, None, T]:
        if not self._done:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                yield from self._on_trio().__await__()
                return self._unwrap()
            future = loop.create_future()
            if self._register(future):
                writer = self._writer
                if writer is not None:
                    writer.ring()
                yield from future
        return self._unwrap()

    async def _on_trio(self) -> None:
        if "trio" not in sys.modules:
            raise RuntimeError("await it on asyncio or trio; in a plain thread call .result()")
        waiter = _TrioWaiter()
        if self._register(waiter):
            if self._writer is not None:
                self._writer.ring()
            await waiter.event.wait()

    def _register(self, waiter: Any) -> bool:
        with _lock:
            if self._done:
                return False
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            return True

    def result(self, timeout: float | None = None) -> T:
        """Wait in a plain thread. Raises TimeoutError after `timeout` seconds (the write still goes on).

        Raises RuntimeError on a thread that runs an event loop: await it there.
        """
        if not self._done:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                raise RuntimeError("this thread runs an event loop: await it, result() would block the loop")
            writer = self._writer
            # a signal handler may raise in the main thread at any point: it leaves the commit to the writer's thread
            if writer is not None and (threading.current_thread() is threading.main_thread() or not writer.lead(self)):
                writer.ring()
            self._wait_blocking(timeout)
        return self._unwrap()

    def _wait_blocking(self, timeout: float | None) -> None:
        waiter = _ThreadWaiter()
        if self._register(waiter) and not waiter.gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError(f"not on disk after {timeout} s; the write goes on")


def resolve(group: Iterable[tuple[Pending[Any], Any, BaseException | None]]) -> None:
    """Give each pending its value or error, and wake every loop once. A loop that is gone is dropped."""
    loops: dict[Any, list[Any]] = {}
    others: list[Any] = []
    with _lock:
        for pending, value, error in group:
            pending._value = value
            pending._error = error
            pending._done = True
            waiters = pending._waiters
            if waiters is not None:
                pending._waiters = None
                for waiter in waiters:
                    if isinstance(waiter, asyncio.Future) or hasattr(waiter, "get_loop"):
                        loop = waiter.get_loop()
                        futures = loops.get(loop)
                        if futures is None:
                            loops[loop] = [waiter]
                        else:
                            futures.append(waiter)
                    else:
                        others.append(waiter)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve_futures, futures)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            pass
    for waiter in others:
        if isinstance(waiter, _ThreadWaiter):
            waiter.gate.release()
        else:
            try:
                waiter.token.run_sync_soon(waiter.event.set)
            except RuntimeError:  # trio's RunFinishedError
                pass


def _resolve_futures(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def resolved(value: T) -> Pending[T]:
    """A pending that is done."""
    pending: Pending[T] = Pending()
    pending._value = value
    pending._done = True
    return pending


def refused(error: BaseException) -> Pending[Any]:
    """A pending that is done with an error."""
    pending: Pending[Any] = Pending()
    pending._error = error
    pending._done = True
    return pending


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
