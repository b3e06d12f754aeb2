"""A task in hand: what its worker may do with it, each guarded by the lease's fencing token."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from deia_recovery.engine.pending import Pending
from deia_recovery.stores import steps
from deia_recovery.stores.state import State

T = TypeVar("T")

_json = msgspec.json.Encoder().encode


class ClaimedTask(Generic[T]):
    """A leased task. Every call raises LeaseLost, with nothing written, once the lease belongs to somebody else.

    Attributes:
        id, queue, body: what it is.
        attempt: 1 at the first try.
        token: the fencing token: hand it to what the work writes to, which refuses lower ones.
        state: what the last attempt left with `checkpoint`, or None.
        cancelled: whether somebody asked to cancel, as of the last heartbeat or checkpoint.
        version: the version that the task is pinned to ("" without migration).
    """

    def __init__(self, state: State, lease: steps.Lease, body: T, max_events: int) -> None:
        self._state = state
        self._max_events = max_events
        self.id = lease.id
        self.queue = lease.queue
        self.body = body
        self.attempt = lease.attempt
        self.token = lease.token
        self.until = lease.until / 1000
        self.conversation = lease.conversation
        self.version = lease.version
        self.cancelled = lease.cancel
        self.state: Any = None if lease.checkpoint is None else msgspec.json.decode(lease.checkpoint)

    def heartbeat(self, lease: float | None = None) -> Pending[bool]:
        """Extend the lease (by `lease` seconds, or by what it was claimed for). False: somebody asked to cancel."""
        milliseconds = None if lease is None else int(lease * 1000)
        return self._state.write(
            lambda tx: steps.heartbeat(tx, self.id, self.token, milliseconds), grows=False, guarded=True
        ).then(self._extended)

    def checkpoint(self, state: Any) -> Pending[bool]:
        """Store where the work stands (JSON-able); the next attempt finds it in `state`. Extends the lease."""
        data = _json(state)
        return self._state.write(
            lambda tx: steps.checkpoint(tx, self.id, self.token, data), grows=False, guarded=True
        ).then(self._extended)

    def _extended(self, found: tuple[int, bool]) -> bool:
        self.until, self.cancelled = found[0] / 1000, found[1]
        return not self.cancelled

    def emit(self, event: Any) -> Pending[int]:
        """Append to the task's numbered log (JSON-able). Returns the event's number."""
        data = _json(event)
        return self._state.write(
            lambda tx: steps.emit(tx, self.id, self.token, data, self._max_events), grows=False, guarded=True
        )

    def complete(self, result: Any = None) -> Pending[None]:
        """The task is done, with a JSON-able result."""
        data = _json(result)
        return self._state.write(lambda tx: steps.complete(tx, self.id, self.token, data), grows=False, guarded=True)

    def fail(self, error: str | BaseException, *, retry_in: float = 0.0, final: bool = False) -> Pending[str]:
        """This attempt failed: tried again after `retry_in` seconds, until its attempts are used up.

        `final` makes it a dead letter at once. Returns the new state.
        """
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return self._state.write(
            lambda tx: steps.fail(tx, self.id, self.token, text, int(retry_in * 1000), final), grows=False, guarded=True
        )

    def release(self) -> Pending[None]:
        """Give the task back untouched: the attempt does not count."""
        return self._state.write(
            lambda tx: steps.release(tx, self.id, self.token, count=False), grows=False, guarded=True
        )

    def __repr__(self) -> str:
        return f"<ClaimedTask {self.id} of {self.queue!r} attempt={self.attempt} token={self.token}>"
