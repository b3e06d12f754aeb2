"""The background loop of the process, core-owned threads for blocking work, and latches between loops.

One daemon thread with one asyncio loop coordinates everything that is not a request, for all hardened apps of
the process. It starts with the first use, starts anew after a fork, and nothing here binds to a serving loop:
a waiter is woken on its own loop (asyncio or trio), and one whose loop is gone is dropped.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from deia_hardening.turns import turns

T = TypeVar("T")


class _AsyncioWaiter:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._resolve)  # RuntimeError when the loop is closed

    def _resolve(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


class _TrioWaiter:
    __slots__ = ("_event", "_token")

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def wake(self) -> None:
        self._token.run_sync_soon(self._event.set)  # trio.RunFinishedError when the run is over

    async def wait(self) -> None:
        await self._event.wait()


def _waiter() -> _AsyncioWaiter | _TrioWaiter:
    try:
        return _AsyncioWaiter(asyncio.get_running_loop())
    except RuntimeError:
        if "trio" in sys.modules:
            return _TrioWaiter()
        raise


class Latch:
    """A one-shot event: `set()` from any thread, `wait()` on any loop (asyncio, uvloop, trio)."""

    __slots__ = ("_lock", "_set", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._waiters: list[Any] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Wake everybody, once. A waiter whose loop is gone is dropped."""
        with self._lock:
            self._set = True
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            try:
                waiter.wake()
            except RuntimeError:  # a closed asyncio loop; trio's RunFinishedError is one too
                pass

    async def wait(self) -> None:
        """Return once `set()` was called."""
        if self._set:
            return
        waiter = _waiter()
        with self._lock:
            if self.is_set():
                return
            self._waiters.append(waiter)
        try:
            await waiter.wait()
        finally:
            if not self._set:
                with self._lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """Wait from a plain thread; False when `timeout` seconds passed first."""
        event = _ThreadWaiter()
        with self._lock:
            if self._set:
                return True
            self._waiters.append(event)
        done = event.event.wait(timeout)
        if not done:
            with self._lock:
                if event in self._waiters:
                    self._waiters.remove(event)
        return done


class _ThreadWaiter:
    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()

    def wake(self) -> None:
        self.event.set()


class Completion(Generic[T]):
    """The result of work done elsewhere. `await completion` on any loop, `result()` in any thread."""

    __slots__ = ("_error", "_latch", "_value")

    def __init__(self) -> None:
        self._latch = Latch()
        self._value: T
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._latch.is_set()

    def set_result(self, value: T) -> None:
        self._value = value
        self._latch.set()

    def set_error(self, error: BaseException) -> None:
        self._error = error
        self._latch.set()

    def _unwrap(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value

    def result(self, timeout: float | None = None) -> T:
        """Block this thread for the result. Raises TimeoutError, or what the work raised."""
        if not self._latch.wait_blocking(timeout):
            raise TimeoutError("the background work did not finish in time")
        return self._unwrap()

    async def wait(self) -> T:
        await self._latch.wait()
        return self._unwrap()

    def __await__(self) -> Any:
        return self.wait().__await__()


_TURNS = 16
"""Turns of the background loop with more to do at once before it looks for input again."""


class _Selector(selectors.DefaultSelector):
    """The background loop's: tells busy serving loops when the loop wants to run.

    With more to do at once it does not look for input at each turn: that gives the interpreter away, and on a busy
    process costs both sides a wake-up or more to get it back.
    """

    _passed = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0 and self._passed < _TURNS:
            self._passed += 1
            return []
        self._passed = 0
        if timeout is None:
            turns.rests(self)
        else:
            turns.wants(self, time.monotonic() + timeout)
        events = super().select(timeout)
        turns.wants(self)
        return events


class _Loop(asyncio.SelectorEventLoop):
    """The background loop."""

    def __init__(self) -> None:
        self._who = _Selector()
        super().__init__(self._who)

    def call_soon_threadsafe(  # type: ignore[override]  # positional arguments of any type, as the base class has it
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        turns.wants(self._who)
        return super().call_soon_threadsafe(callback, *args, context=context)


class Threads:
    """Daemon threads on demand for blocking calls; an idle one ends after `idle` seconds.

    Not asyncio's default executor and not anyio's limiter, so an app that fills those can't starve us.
    """

    def __init__(self, limit: int = 32, idle: float = 1.0) -> None:
        self._limit = limit
        self._idle_seconds = idle
        self._reset()

    def _reset(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._jobs: deque[Callable[[], None]] = deque()
        self._count = 0
        self._idle = 0

    def submit(self, function: Callable[..., T], *args: Any) -> Completion[T]:
        """Run `function(*args)` on a thread, in a copy of the caller's context."""
        completion: Completion[T] = Completion()
        context = contextvars.copy_context()

        def job() -> None:
            turns.begins(job)
            try:
                completion.set_result(context.run(function, *args))
            except BaseException as error:
                completion.set_error(error)
            finally:
                turns.rests(job)

        turns.wants(job)
        with self._condition:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._condition.notify()
                return completion
            start = self._count < self._limit
            if start:
                self._count += 1
        if start:
            try:
                threading.Thread(target=self._work, name="deia-blocking", daemon=True).start()
            except RuntimeError as error:  # the interpreter is shutting down
                with self._condition:
                    self._count -= 1
                    if job in self._jobs:
                        self._jobs.remove(job)
                completion.set_error(error)
        return completion

    def _work(self) -> None:
        condition = self._condition
        while True:
            with condition:
                while not self._jobs:
                    self._idle += 1
                    woken = condition.wait(self._idle_seconds)
                    self._idle -= 1
                    if not woken and not self._jobs:
                        self._count -= 1
                        return
                job = self._jobs.popleft()
            job()
            del job


class Runtime:
    """The background loop and its threads. One per process: use `runtime()`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.threads = Threads()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The background loop; its thread starts at the first use."""
        loop = self._loop
        if loop is None:
            with self._lock:
                loop = self._loop
                if loop is None:
                    loop = _Loop()
                    thread = threading.Thread(target=self._run, args=(loop,), name="deia-background", daemon=True)
                    thread.start()
                    self._thread = thread
                    self._loop = loop
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def is_current(self) -> bool:
        """Whether the caller runs on the background thread."""
        return threading.current_thread() is self._thread

    def submit(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Completion[T]:
        """Run `function(*args)` as a task of the background loop. Thread-safe; cancelled by nobody."""
        completion: Completion[T] = Completion()

        async def work() -> None:
            try:
                completion.set_result(await function(*args))
            except BaseException as error:
                completion.set_error(error)
                if not isinstance(error, Exception):
                    raise

        def start() -> None:
            task = loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        loop = self.loop
        loop.call_soon_threadsafe(start, context=contextvars.Context())
        return completion

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await `function(*args)`, run on the background loop, from any loop."""
        if self.is_current():
            return await function(*args)
        completion: Completion[T] = self.submit(function, *args)
        return await completion.wait()

    def blocking(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        """Await `function(*args)`, run on a core-owned thread, from any loop."""
        return self.threads.submit(function, *args)


_runtime = Runtime()


def runtime() -> Runtime:
    """The process's runtime. After a fork the child's is as never started."""
    return _runtime


_of_parents: list[set[asyncio.Task[Any]]] = []


def _after_fork() -> None:
    loop = _runtime._loop
    if loop is not None:  # collected, they would run their `finally` here, on what is the parent's
        _of_parents.append(asyncio.all_tasks(loop))
    _runtime._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
