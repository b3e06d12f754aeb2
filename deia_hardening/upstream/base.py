"""What can answer a request: one interface, and one of three outcomes.

An upstream is an ASGI app. Calling it either completes, or raises one of three errors that tell the caller
what may be done next: `NotSent` (nothing reached the other side: try another), `FailedBeforeStart` (it may
have acted, nothing was answered: another may answer if the request has no effects), `Aborted` (the answer
had begun: nothing can be put in its place). Every other exception is the app's own and passes untouched.
"""

from __future__ import annotations

import enum
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs

from deia_hardening.errors import HardeningError, StartError
from deia_hardening.types import Receive, Scope, Send


class Outcome(enum.Enum):
    """How far a call came. It decides whether another upstream may be asked for the same request."""

    NOT_SENT = "not_sent"
    """Provably nothing was acted upon: refused, no connection, pool full, closed while idle."""

    FAILED_BEFORE_START = "failed_before_start"
    """The request was sent, perhaps acted upon, and no answer began: reset, time-out, malformed head."""

    STARTED = "started"
    """The answer began and did not end as it should: its caller can only pass the break on."""

    COMPLETED = "completed"
    """The answer went out whole (whatever its status), or the client left first."""


class UpstreamError(HardeningError):
    """A call that did not complete. `outcome` says how far it came, `cause` why in one word.

    `consumed` tells whether `receive` had been awaited: when it had, whoever asks another upstream must
    replay the body that was read. `cause` is one of: refused, connect_timeout, unreachable, address,
    pool_full, stopped, closed, reset, first_byte_timeout, idle_timeout, malformed, too_large, lifespan,
    error.
    """

    outcome: Outcome = Outcome.FAILED_BEFORE_START

    def __init__(self, upstream: str, cause: str, why: str, *, consumed: bool = False) -> None:
        self.upstream = upstream
        self.cause = cause
        self.consumed = consumed
        super().__init__(f"upstream {upstream}: {why}")


class NotSent(UpstreamError):  # noqa: N818 - a verdict, not a fault
    """Nothing reached the other side. Another upstream, or this one again, may be asked at once."""

    outcome = Outcome.NOT_SENT


class FailedBeforeStart(UpstreamError):  # noqa: N818 - a verdict, not a fault
    """The request went out and no answer began. Safe to repeat only when the request has no effects."""

    outcome = Outcome.FAILED_BEFORE_START


class Aborted(UpstreamError):  # noqa: N818 - a verdict, not a fault
    """The answer broke after its start. Let it pass: the server then cuts the client's connection."""

    outcome = Outcome.STARTED


class UpstreamStartError(StartError):
    """An upstream could not be brought up; nothing of it was left running. `why` has its last words."""

    def __init__(self, upstream: str, why: str) -> None:
        self.plugin = self.upstream = upstream
        self.why = why
        HardeningError.__init__(self, f"upstream {upstream} could not start: {why}; nothing of it was left running")


def outcome_of(error: BaseException | None, *, started: bool) -> Outcome:
    """Judge a finished call: `error` is what it raised (None when it returned).

    An exception of an `inproc:` app counts by whether its answer had started, which only the caller's
    `send` knows.
    """
    if error is None:
        return Outcome.COMPLETED
    if isinstance(error, UpstreamError):
        return error.outcome
    return Outcome.STARTED if started else Outcome.FAILED_BEFORE_START


@attrs.frozen
class Readiness:
    """The answer to an active check: `ok`, and in `detail` what was tried and what came back.

    `absent`: nothing accepts connections there, as while a child is started again.
    """

    ok: bool
    detail: str
    absent: bool = False


class Upstream(Protocol):
    """Something that can answer a request, opened by `open_upstream`.

    Calling is allowed from any event loop (asyncio or trio), before `start` too; connections belong to the
    loop that made them. `start`, `ready` and `stop` are for the background loop (asyncio) and may be called
    again.
    """

    @property
    def name(self) -> str:
        """The target as it was opened, without credentials: `process:shop:app`."""

    @property
    def in_flight(self) -> int:
        """Calls in progress in this process, streams and WebSockets included."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a `http` or `websocket` scope. Raises as the module's text says."""

    async def start(self) -> None:
        """Bring up what must run: the child process, the first address look-up. Idempotent.

        Raises `StartError` when it can't, with nothing left behind. `inproc:` has nothing to start here: its
        lifespan runs on the serving loop (`lifespan()`).
        """

    async def ready(self) -> Readiness:
        """Check actively whether a call would be answered now. Bounded by `settings.probe_timeout`; never
        raises."""

    async def stop(self) -> None:
        """End it: no new calls (`NotSent`, cause `stopped`), idle connections closed, a child asked and
        then made to end.

        Calls in progress are not cut by this; wait for `in_flight` to reach 0 first where that matters.
        """

    def lifespan(self) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Drive the app's own lifespan on the loop that enters this; yields its lifespan state.

        Only `inproc:` does something here. For the others it is an empty block: their lifespan is theirs.
        """
