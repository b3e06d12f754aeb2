"""Calling a version: with the request in its table of flights, cut when it is told to, held while nothing serves.

A version that can't be reached has acted on nothing, so the request is not lost with it: the other version takes it,
or it waits for the version to be started again, for as long as the settings say. What a version had taken is never
sent twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio

from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import ASGIApp, Message, Problem, Receive, RequestContext, Scope, Send
from deia_hardening.upstream import FailedBeforeStart, NotSent
from deia_migration.ending import RETRY_AFTER, end_politely
from deia_migration.shield import bodyless
from deia_migration.traffic import Router, Version

_monotonic = time.monotonic
_current_task = asyncio.current_task

LOOK_AGAIN = 0.05
"""Seconds between two tries to reach a version that is being started again."""


class Kept:
    """What was read of a request, as long as it is short: another try begins with it. In the place of `receive`."""

    __slots__ = ("_limit", "_read", "_receive", "_size", "_turn")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._read: list[Message] = []
        self._size = 0
        self._turn = 0

    async def __call__(self) -> Message:
        if self._turn < len(self._read):
            self._turn += 1
            return self._read[self._turn - 1]
        message = await self._receive()
        if self._size <= self._limit:
            self._size += len(message.get("body") or b"")
            if self._size <= self._limit:
                self._read.append(message)
                self._turn += 1
            else:
                self._read.clear()
        return message

    def rewind(self) -> bool:
        """Begin again with what was read; False when it was too long to be kept."""
        self._turn = 0
        return self._size <= self._limit


class Caller:
    """One layer's way to its versions. `app` is what a version without an `answer` means: the wrapped app."""

    __slots__ = ("_app", "_keep", "_room", "_router", "_wait")

    def __init__(self, app: ASGIApp, router: Router, wait: float, room: int, keep: int) -> None:
        """`wait`: seconds that a request may wait for a version; `room`: how many may wait at a time; `keep`: bytes."""
        self._app = app
        self._keep = keep
        self._router = router
        self._wait = wait
        self._room = room

    def kept(self, receive: Receive) -> Kept:
        """`receive` for a version beside the app, which another one may have to stand in for."""
        return receive if isinstance(receive, Kept) else Kept(receive, self._keep)

    async def fly(self, version: Version, weight: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Call a version, with the request in its table of flights. Raises what it raises, but its own cut."""
        task = current_task()
        if not isinstance(task, asyncio.Task):
            await self._on_trio(version, weight, scope, receive, send)
            return
        flights = version.flights
        flights[task] = (scope[SCOPE_KEY], weight)
        try:
            await (version.answer or self._app)(scope, receive, send)
        except asyncio.CancelledError:
            if task not in version.cutting:
                raise
            await cut(task, scope, send)
        finally:
            flights.pop(task, None)
            if version.cutting:
                version.cutting.discard(task)

    async def _on_trio(self, version: Version, weight: float, scope: Scope, receive: Receive, send: Send) -> None:
        import trio

        task = trio.lowlevel.current_task()
        context: RequestContext = scope[SCOPE_KEY]
        version.flights[task] = (context, weight)
        try:
            with trio.CancelScope() as cancel:
                version.on_trio(task, (trio.lowlevel.current_trio_token(), cancel))
                await (version.answer or self._app)(scope, receive, send)
            if cancel.cancelled_caught:
                await end_politely(context, send, websocket=scope["type"] == "websocket")
        finally:
            version.flights.pop(task, None)
            version.on_trio(task, None)
            version.cutting.discard(task)

    async def surely(self, version: Version, weight: float, scope: Scope, receive: Receive, send: Send) -> None:
        """`fly` with a version that nobody stands behind: what can't be reached is waited for.

        The wrapped app's own exceptions pass, whatever they are: only a version beside it is answered for.
        """
        if version.answer is None:
            await self.fly(version, weight, scope, receive, send)
            return
        kept = self.kept(receive)
        try:
            await self.fly(version, weight, scope, kept, send)
        except (NotSent, FailedBeforeStart) as error:
            if scope[SCOPE_KEY].status:
                raise
            await self.instead(error, scope, kept, send)

    async def instead(self, error: NotSent | FailedBeforeStart, scope: Scope, kept: Kept, send: Send) -> None:
        """A version has failed before its answer began: another try where that is safe, else a refusal."""
        if isinstance(error, FailedBeforeStart) and not _repeatable(scope):
            await gateway(scope, send)
            return
        router = self._router
        deadline = _monotonic() + self._wait
        if router.wait(self._room):
            try:
                while kept.rewind() and _monotonic() < deadline:
                    for version in _who(router):
                        if await self._again(version, scope, kept, send):
                            return
                        if not kept.rewind():
                            break
                    await anyio.sleep(LOOK_AGAIN)
            finally:
                router.waited()
        detail = "The version that serves can't be reached; it has not seen this request. Ask again."
        await Problem(503, detail, retry_after=RETRY_AFTER).send(send, websocket=scope["type"] == "websocket")

    async def _again(self, version: Version, scope: Scope, kept: Kept, send: Send) -> bool:
        """One more try; False when the version still can't be reached."""
        scope[SCOPE_KEY].version = version.label
        try:
            await self.fly(version, -1.0, scope, kept, send)
        except NotSent:
            if version.answer is None:
                raise
            return False
        except FailedBeforeStart:
            if version.answer is None or scope[SCOPE_KEY].status:
                raise
            await gateway(scope, send)
        return True


def _repeatable(scope: Scope) -> bool:
    """Whether a request may be sent twice: it changes nothing, and has no body that was read already."""
    return (
        scope.get("method") in ("GET", "HEAD", "OPTIONS")
        and bodyless(scope)
        and not scope[SCOPE_KEY].revision.effects.match(scope, False)
    )


def _who(router: Router) -> tuple[Version, ...]:
    """Who may take a request that its version did not get: the version that serves, then a candidate that is up."""
    live = router.live
    if live is None:
        return (router.base,)
    return (live.stable, live.candidate) if live.candidate.ready else (live.stable,)


def current_task() -> Any:
    """The task that serves this request: asyncio's or trio's."""
    try:
        found = _current_task()
    except RuntimeError:
        found = None
    if found is not None:
        return found
    import trio

    return trio.lowlevel.current_task()


async def cut(task: asyncio.Task[Any], scope: Scope, send: Send) -> None:
    """The request's task was cancelled by us: its client is told, the cancellation taken back."""
    task.uncancel()
    await end_politely(scope[SCOPE_KEY], send, websocket=scope["type"] == "websocket")


async def gateway(scope: Scope, send: Send) -> None:
    """A version took the request and gave no answer: nobody may repeat it, so the client hears of it."""
    problem = Problem(
        502,
        "The version that took this request did not answer; it may have acted on it. Ask what became of it first.",
        retry_after=RETRY_AFTER,
    )
    await problem.send(send, websocket=scope["type"] == "websocket")
