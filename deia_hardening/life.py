"""One plugin's `run()`, held open by a task of its own on the background loop: entered and left in one task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from deia_hardening.errors import StartError
from deia_hardening.plugin import Health, HealthState, Plugin
from deia_hardening.runtime import runtime

logger = logging.getLogger("deia_hardening")


class Life:
    """One plugin's `run()`, held open by a task of its own."""

    def __init__(self, plugin: Plugin[Any], failures: dict[str, Health], inner: bool = False) -> None:
        self.plugin = plugin
        self._run = plugin.run_inner if inner else plugin.run
        self._failures = failures
        self._stop = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._live(), name=f"deia-{plugin.name}")

    async def _live(self) -> None:
        try:
            async with self._run():
                if not self._started.done():
                    self._started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(
                    error if isinstance(error, Exception) else StartError(self.plugin.name, repr(error))
                )
                return
            if isinstance(error, asyncio.CancelledError) and self._stop.is_set():
                raise
            logger.error("plugin '%s' ended by itself", self.plugin.name, exc_info=error)
            # Not FAILED: its layers go on, and a fault that all workers share must not take the service out of balance.
            why = f"it ended by itself: {error!r}; the rest goes on without its background work"
            self._failures[self.plugin.name] = Health(HealthState.DEGRADED, why, time.time())

    async def started(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(self._started), timeout)
        except TimeoutError:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)
            raise StartError(self.plugin.name, f"it did not start within {timeout:g} s") from None
        except Exception as error:
            raise StartError(self.plugin.name, sentence(error)) from error

    async def stop(self, timeout: float) -> None:
        self._stop.set()
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        if not done:
            logger.warning("plugin '%s' did not stop within %g s and is cancelled", self.plugin.name, timeout)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)
        with contextlib.suppress(BaseException):
            self._task.exception()


def sentence(error: BaseException) -> str:
    text = str(error).strip()
    return text if text else type(error).__name__


def abandon(lives: dict[str, Life]) -> None:
    """The app was collected while its plugins ran: end them."""
    taken = list(lives.values())
    lives.clear()

    async def end() -> None:
        for life in reversed(taken):
            await life.stop(1.0)

    if taken:
        with contextlib.suppress(RuntimeError):
            runtime().submit(end)
