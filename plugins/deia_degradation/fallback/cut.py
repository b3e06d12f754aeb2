"""Ending one awaited call from outside of its task, while the task goes on.

anyio's cancel scope does that everywhere, at some microseconds per use on asyncio; requests there use the task's own
cancellation (Python 3.11 counts and takes it back), and a scope on trio, where it is cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

import anyio


class Cut(Protocol):
    """One call that can be ended."""

    def cancel(self) -> None:
        """End the call. On its own loop, from outside of its task."""

    async def run(self, call: Awaitable[Any]) -> None:
        """Await `call`; returns normally also when it was ended by `cancel`."""


class _AsyncioCut:
    __slots__ = ("_before", "_requested", "_task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._before = task.cancelling()
        self._requested = False

    def cancel(self) -> None:
        # The task is suspended inside `run` whenever somebody else runs on its loop: the cancellation lands there.
        if not self._requested:
            self._requested = True
            self._task.cancel()

    async def run(self, call: Awaitable[Any]) -> None:
        try:
            await call
        except asyncio.CancelledError:
            if not self._requested:
                raise
            if self._task.uncancel() > self._before:
                raise  # somebody else cancelled the whole task as well
        except BaseException:
            if self._requested:
                self._task.uncancel()
            raise
        else:
            if self._requested:
                self._task.uncancel()


class _ScopeCut:
    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    def cancel(self) -> None:
        self._scope.cancel()

    async def run(self, call: Awaitable[Any]) -> None:
        with self._scope:
            await call


def cut() -> Cut:
    """A cut for the task that this is called in."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return _ScopeCut() if task is None else _AsyncioCut(task)
