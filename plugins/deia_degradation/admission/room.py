"""The bounded waiting room before any refusal: four criticalities, pure and without a clock of its own.

Strict priority with a small reserve for the lowest that waits; within one criticality first come, first served
until the oldest has waited half its allowance, then the newest first (the adaptive LIFO of Maurer, "Fail at Scale",
ACM Queue 13(8), 2015): those who have waited too long would leave anyway. Who would not be served in
time is refused at the door, which keeps refusals quick; the criticalities are those of Google's SRE book, ch. 21.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

import attrs


class Criticality(enum.IntEnum):
    """How much a request matters; the smaller value goes first."""

    CRITICAL_PLUS = 0
    CRITICAL = 1
    SHEDDABLE_PLUS = 2
    SHEDDABLE = 3


class WaiterState(enum.Enum):
    WAITING = "waiting"
    ADMITTED = "admitted"
    REFUSED = "refused"
    """Displaced by a more important one, or it can no longer finish in time."""


class Waiter:
    """One request that waits. `until` is the last moment (monotonic seconds) at which starting it makes sense."""

    __slots__ = ("allowance", "arrived", "criticality", "reason", "state", "until", "wake")

    def __init__(
        self, criticality: int, arrived: float, allowance: float, until: float, wake: Callable[[], None]
    ) -> None:
        self.criticality = criticality
        self.arrived = arrived
        self.allowance = allowance
        self.until = until
        self.wake = wake
        """Called once, outside of any lock, when `state` is no longer WAITING."""
        self.state = WaiterState.WAITING
        self.reason = ""


@attrs.frozen
class RoomPolicy:
    """`places`: most that wait at once. `reserve`: the part of starts that goes to the lowest waiting criticality.
    `fill`: the part of the allowance up to which the expected wait may go; below a half it stays first in, first
    out. `cold`: how many may wait while the pace is not yet known."""

    places: int = 1000
    reserve: float = 0.05
    fill: float = 0.3
    cold: int = 50


_RATE_EVERY = 0.25
_RATE_WEIGHT = 0.15


class WaitingRoom:
    """Who waits, and who is next. Not thread-safe: the gate's lock protects it."""

    def __init__(self, policy: RoomPolicy = RoomPolicy()) -> None:
        self.policy = policy
        self.size = 0
        self._queues: tuple[deque[Waiter], ...] = tuple(deque() for _ in Criticality)
        self._credit = 0.0
        self._taken = [0] * len(Criticality)
        self._rates = [0.0] * len(Criticality)
        """Starts per second from the room by criticality, smoothed."""
        self._rated = 0.0
        self._known = False

    def waiting(self, criticality: int) -> int:
        """How many of this criticality wait."""
        return len(self._queues[criticality])

    @property
    def rate(self) -> float:
        """Starts per second from the room; 0.0 while nothing is known."""
        return sum(self._rates)

    def expected_wait(self, criticality: int, now: float) -> float:
        """Seconds that a newcomer of this criticality would wait; 0.0 while nothing is known."""
        self._measure(now)
        if not self._known:
            return 0.0
        total = sum(self._rates)
        before = sum(self._rates[:criticality])
        ahead = sum(len(queue) for queue in self._queues[:criticality])
        left = max(total - before, total * self.policy.reserve, 1e-3)
        return (len(self._queues[criticality]) + 1) / left + ahead / max(total, 1e-3)

    def offer(self, waiter: Waiter, now: float) -> tuple[bool, Waiter | None]:
        """Let `waiter` in if it makes sense. Returns (it is in, who was displaced for it)."""
        if self.size == 0:
            self._rated = now
            self._taken = [0] * len(Criticality)
        queue = self._queues[waiter.criticality]
        expected = self.expected_wait(waiter.criticality, now)
        displaced = None
        if now + expected > waiter.until or waiter.until <= now:
            waiter.reason = "it could not finish in time"
            return False, None
        if expected > waiter.allowance * self.policy.fill or (not self._known and self.size >= self.policy.cold):
            if not queue or now - queue[0].arrived <= queue[0].allowance * 0.5:
                waiter.reason = "it would wait longer than its allowance"
                return False, None
            # While newcomers are served first the oldest only takes up room: its place is worth more to this one.
            displaced = queue.popleft()
            self.size -= 1
            displaced.state = WaiterState.REFUSED
            displaced.reason = "it waited too long behind newer requests"
        elif self.size >= self.policy.places:
            displaced = self._displace(waiter.criticality)
            if displaced is None:
                waiter.reason = "the waiting room is full"
                return False, None
        queue.append(waiter)
        self.size += 1
        return True, displaced

    def _displace(self, criticality: int) -> Waiter | None:
        for queue in reversed(self._queues[criticality + 1 :]):
            if queue:
                waiter = queue.pop()
                self.size -= 1
                waiter.state = WaiterState.REFUSED
                waiter.reason = "displaced by a more important request"
                return waiter
        return None

    def take(self, now: float, refused: list[Waiter]) -> Waiter | None:
        """The next to start, or None. Those that can no longer finish in time go to `refused`."""
        while self.size:
            queue = self._next_queue()
            oldest = queue[0]
            late = now - oldest.arrived > oldest.allowance * 0.5
            waiter = queue.pop() if late else queue.popleft()
            self.size -= 1
            if waiter.until < now:
                waiter.state = WaiterState.REFUSED
                waiter.reason = "it can no longer finish in time"
                refused.append(waiter)
                continue
            waiter.state = WaiterState.ADMITTED
            self._taken[waiter.criticality] += 1
            self._measure(now)
            return waiter
        return None

    def _next_queue(self) -> deque[Waiter]:
        first = last = None
        for queue in self._queues:
            if queue:
                last = queue
                if first is None:
                    first = queue
        assert first is not None
        assert last is not None
        if first is last:
            return first
        self._credit += self.policy.reserve
        if self._credit >= 1.0:
            self._credit -= 1.0
            return last
        return first

    def leave(self, waiter: Waiter) -> bool:
        """The client of `waiter` left. False when it does not wait any more."""
        try:
            self._queues[waiter.criticality].remove(waiter)
        except ValueError:
            return False
        self.size -= 1
        return True

    def sweep(self, now: float) -> list[Waiter]:
        """Take out and return those whose time is over, all of them refused."""
        over: list[Waiter] = []
        for queue in self._queues:
            if any(waiter.until < now for waiter in queue):
                kept = [waiter for waiter in queue if waiter.until >= now]
                over += [waiter for waiter in queue if waiter.until < now]
                queue.clear()
                queue.extend(kept)
        for waiter in over:
            waiter.state = WaiterState.REFUSED
            waiter.reason = "it can no longer finish in time"
        self.size -= len(over)
        return over

    def _measure(self, now: float) -> None:
        elapsed = now - self._rated
        if elapsed < _RATE_EVERY:
            return
        self._rated = now
        if not self._known and not any(self._taken):
            return
        # After a long gap the newest figure counts in full.
        weight = 1.0 if not self._known else min(1.0, _RATE_WEIGHT * elapsed / _RATE_EVERY)
        self._known = True
        for index, taken in enumerate(self._taken):
            self._rates[index] += (taken / elapsed - self._rates[index]) * weight
            self._taken[index] = 0
