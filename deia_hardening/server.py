"""The serving loop, while a lifespan is open: where an in-process version's lifespan or a replay runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup

from deia_hardening.errors import NotStarted
from deia_hardening.runtime import Completion


class Serving:
    """A task scope on the serving loop. `hold()` opens it for the time of a lifespan; `start` works from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: list[tuple[TaskGroup, Callable[..., Any], contextvars.Context]] = []

    @property
    def open(self) -> bool:
        """Whether a lifespan is open now."""
        return bool(self._groups)

    async def hold(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `body()` with the scope open around it; what was started in it is cancelled at the end."""
        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            entry = (group, _scheduler(), contextvars.copy_context())
            with self._lock:
                self._groups.append(entry)
            try:
                await body()
            except BaseException as raised:  # a task group would wrap what the app raised
                error = raised
            finally:
                with self._lock:
                    self._groups.remove(entry)
                group.cancel_scope.cancel()
        if error is not None:
            raise error

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Completion[Any]:
        """Run `function(*args)` as a task on the serving loop; cancelled when the lifespan ends. Any thread."""
        with self._lock:
            if not self._groups:
                raise NotStarted("no lifespan is open: there is no serving loop to run this on")
            group, schedule, context = self._groups[-1]  # in its own context: the caller's knows nothing of this loop
        completion: Completion[Any] = Completion()

        async def work() -> None:
            try:
                completion.set_result(await function(*args))
            except BaseException as raised:
                completion.set_error(raised)
                if not isinstance(raised, Exception):
                    raise

        def begin() -> None:
            try:
                group.start_soon(work)
            except RuntimeError as raised:  # the scope closed meanwhile
                completion.set_error(NotStarted(str(raised)))

        try:
            schedule(context.copy().run, _in_task, begin)
        except RuntimeError as raised:
            completion.set_error(NotStarted(str(raised)))
        return completion

    def schedule(self, function: Callable[..., Any], *args: Any) -> None:
        """Call `function(*args)` on the serving loop, from any thread. Raises NotStarted when none is open."""
        with self._lock:
            if not self._groups:
                raise NotStarted("no lifespan is open: there is no serving loop")
            schedule = self._groups[-1][1]
        schedule(function, *args)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._groups = []


_beginning: set[asyncio.Task[None]] = set()


def _in_task(begin: Callable[[], None]) -> None:
    """Call `begin` on this loop; on asyncio in a task, since anyio asks the current task which library it is in."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        begin()  # trio
        return

    async def task() -> None:
        begin()

    made = loop.create_task(task())
    _beginning.add(made)
    made.add_done_callback(_beginning.discard)


def _scheduler() -> Callable[..., Any]:
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
