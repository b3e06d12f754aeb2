"""The gate: the learned limit and the waiting room under one lock.

Entering when there is room is one lock and a few comparisons; a slot that comes free goes straight to whoever is
next in the waiting room. The lock is never held across an await; whoever is to be woken is woken after it.
"""

from __future__ import annotations

import threading

import attrs

from deia_degradation.admission.limit import AdaptiveLimit, LimitPolicy
from deia_degradation.admission.room import RoomPolicy, Waiter, WaiterState, WaitingRoom

_LIMIT = LimitPolicy()
_ROOM = RoomPolicy()


@attrs.define
class GateCounts:
    """What happened so far. `shed` are refusals of every kind; all only grow."""

    entered: int = 0
    waited: int = 0
    shed: int = 0
    left: int = 0
    """Clients that left while waiting."""


class Gate:
    """Slots for requests in this process. Thread-safe; usable from any loop."""

    def __init__(self, limit: LimitPolicy = _LIMIT, room: RoomPolicy = _ROOM, streams: int = 1000) -> None:
        self.limit = AdaptiveLimit(limit)
        self.room = WaitingRoom(room)
        self.in_flight = 0
        self.streams = 0
        """Event streams, WebSockets and long requests that are open."""
        self.most_streams = streams
        self.counts = GateCounts()
        self.smallest_wait = 0.0
        """The least time that anybody who waited had to wait, since it was last read by `read_smallest_wait`."""
        self._waits = 0
        self._lock = threading.Lock()

    def reset(self) -> None:
        """As with nobody inside (in a forked child: the parent's requests are not here). What was learned stays."""
        self._lock = threading.Lock()
        self.in_flight = self.streams = 0
        self.room = WaitingRoom(self.room.policy)

    def enter(self) -> bool:
        """Take a slot if one is free and nobody waits for it. `leave` must follow. About 0.4 µs."""
        with self._lock:
            in_flight = self.in_flight
            limit = self.limit
            if in_flight < limit.limit and not self.room.size:
                self.in_flight = in_flight = in_flight + 1
                if in_flight > limit._peak:
                    limit.started(in_flight)
                self.counts.entered += 1
                return True
            limit._saturated = True
            return False

    def wait(self, waiter: Waiter, now: float) -> bool:
        """Queue `waiter`; False when it is refused at the door (`waiter.reason`). Call after `enter` said no."""
        displaced: Waiter | None = None
        with self._lock:
            if self._free() and not self.room.size:  # a slot came free in between
                self.in_flight += 1
                self.limit.started(self.in_flight)
                self.counts.entered += 1
                waiter.state = WaiterState.ADMITTED
                accepted = True
            else:
                accepted, displaced = self.room.offer(waiter, now)
                if not accepted:
                    waiter.state = WaiterState.REFUSED
                    self.counts.shed += 1
                if displaced is not None:
                    self.counts.shed += 1
        if displaced is not None:
            displaced.wake()
        elif waiter.state is WaiterState.ADMITTED:
            waiter.wake()
        return accepted

    def leave(self, now: float, seconds: float | None, deadline: float | None = None) -> None:
        """Give a slot back. `seconds` is how long the work took, None when that says nothing about load
        (it failed, the client left). `deadline`: the seconds that it had."""
        with self._lock:
            self.in_flight -= 1
            if seconds is not None:
                self.limit.finished(now, seconds, deadline)
            if not self.room.size:
                return
            wake = self._fill(now)
        for waiter in wake:
            waiter.wake()

    def to_stream(self, now: float, seconds: float, deadline: float | None = None) -> None:
        """An answer turned out to be a stream: its slot is free, and its time to the first byte is what counts."""
        self.open_stream()
        self.leave(now, seconds, deadline)

    def open_stream(self) -> None:
        """Count one more stream, whether or not there is a slot for it: it runs already."""
        with self._lock:
            self.streams += 1

    def enter_stream(self) -> bool:
        """Take a stream's slot if one is free; `leave_stream` must follow."""
        with self._lock:
            if self.streams >= self.most_streams:
                self.counts.shed += 1
                return False
            self.streams += 1
            return True

    def leave_stream(self) -> None:
        """Give a stream's slot back."""
        with self._lock:
            self.streams -= 1

    def adopt(self, limit: LimitPolicy, room: RoomPolicy, streams: int) -> None:
        """Follow new settings; what was learned stays, within the new bounds."""
        with self._lock:
            self.limit.adopt(limit)
            self.room.policy = room
            self.most_streams = streams

    def abandon(self, waiter: Waiter, now: float) -> None:
        """The client of `waiter` left, or its task was cancelled; whatever it held is given back."""
        with self._lock:
            if waiter.state is WaiterState.ADMITTED:
                waiter.state = WaiterState.REFUSED
                self.in_flight -= 1
                self.counts.left += 1
            elif self.room.leave(waiter):
                waiter.state = WaiterState.REFUSED
                self.counts.left += 1
            wake = self._fill(now)
        for one in wake:
            one.wake()

    def sweep(self, now: float) -> int:
        """Refuse those whose time is over; how many still wait."""
        with self._lock:
            over = self.room.sweep(now)
            self.counts.shed += len(over)
            wake = self._fill(now)
            left = self.room.size
        for waiter in (*over, *wake):
            waiter.wake()
        return left

    def _free(self) -> bool:
        return self.in_flight < self.limit.limit

    def _fill(self, now: float) -> list[Waiter]:
        wake: list[Waiter] = []
        while self.room.size and self._free():
            refused: list[Waiter] = []
            waiter = self.room.take(now, refused)
            self.counts.shed += len(refused)
            wake += refused
            if waiter is None:
                break
            wake.append(waiter)
            self.in_flight += 1
            self.limit.started(self.in_flight)
            self.counts.entered += 1
            self.counts.waited += 1
            waited = now - waiter.arrived
            self.smallest_wait = waited if not self._waits else min(self.smallest_wait, waited)
            self._waits += 1
        return wake

    def read_smallest_wait(self) -> float:
        """The least wait since the last call, in seconds; 0.0 when nobody waited (a standing queue has a high one)."""
        with self._lock:
            smallest = self.smallest_wait if self._waits else 0.0
            self.smallest_wait = 0.0
            self._waits = 0
            return smallest


class OpenGate(Gate):
    """Lets everybody in: admission is turned off. Streams are counted by `main` all the same."""

    def __init__(self, main: Gate) -> None:
        super().__init__()
        self._main = main

    def enter(self) -> bool:
        return True

    def leave(self, now: float, seconds: float | None, deadline: float | None = None) -> None:
        """Nothing was taken."""

    def to_stream(self, now: float, seconds: float, deadline: float | None = None) -> None:
        self._main.open_stream()

    def enter_stream(self) -> bool:
        self._main.open_stream()
        return True

    def leave_stream(self) -> None:
        self._main.leave_stream()
