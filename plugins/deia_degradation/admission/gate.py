"""The gate: the learned limit and the waiting room, as a stack of free slots.

A slot is an entry of a list: whoever pops one is in, whoever leaves appends it, both in one step that no other thread
can divide. So while nobody waits no lock is taken (two of them were a tenth of the cost of admission). Everything else
happens under one lock, which is never held across an await; whoever is to be woken is woken after it. A slot that
comes free while somebody waits goes straight to whoever is next.
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

    waited: int = 0
    """Let in after a wait."""
    shed: int = 0
    left: int = 0
    """Clients that left while waiting."""


class Gate:
    """Slots for requests in this process. Thread-safe; usable from any loop."""

    def __init__(self, limit: LimitPolicy = _LIMIT, room: RoomPolicy = _ROOM, streams: int = 1000) -> None:
        self.limit = AdaptiveLimit(limit)
        self.room = WaitingRoom(room)
        self.direct = 0
        """Requests that came in without a wait."""
        self.streams = 0
        """Event streams, WebSockets and long requests that are open."""
        self.most_streams = streams
        self.crowded = streams <= 0
        """Whether no stream's slot is free."""
        self.counts = GateCounts()
        self.smallest_wait = 0.0
        """The least time that anybody who waited had to wait, since it was last read by `read_smallest_wait`."""
        self._waits = 0
        self.reset()

    def reset(self) -> None:
        """As with nobody inside (in a forked child: the parent's requests are not here). What was learned stays."""
        self._lock = threading.Lock()
        self.room = WaitingRoom(self.room.policy)
        self.streams = 0
        self.crowded = self.most_streams <= 0
        self._slots = self.limit.limit
        """How many there are, free or taken. More than the limit after a cut, until enough have left."""
        self._free: list[None] = [None] * self._slots
        self._pop = self._free.pop
        self._least = self._slots
        """The fewest that were free in this window."""
        self._busy = False
        """Somebody waits, or there are too many slots: nobody comes in by popping one, who leaves looks further."""

    @property
    def in_flight(self) -> int:
        """Requests that are inside."""
        return self._slots - len(self._free)

    @property
    def entered(self) -> int:
        """Requests that were let in so far."""
        return self.direct + self.counts.waited

    # -- the request path ----------------------------------------------------------------------------------

    def enter(self) -> bool:
        """Take a slot if one is free and nobody waits for it. `leave` must follow. About 0.1 µs."""
        if not self._busy:
            try:
                self._pop()
            except IndexError:
                pass
            else:
                self.direct += 1
                return True
        self._least = 0
        return False

    def leave(self, now: float, seconds: float | None, deadline: float | None = None) -> None:
        """Give a slot back. `seconds` is how long the work took, None when that says nothing about load
        (it failed, the client left). `deadline`: the seconds that it had. About 0.15 µs."""
        free = self._free
        left = len(free)
        if left < self._least:
            self._least = left
        if seconds is not None:
            limit = self.limit
            limit.latencies.append(seconds)
            if now >= limit.due:
                self._look(now, deadline)
        free.append(None)
        if self._busy:  # looked at after the slot is free: whoever begins to wait looks at the slots after setting it
            self._pass_on(now)

    # -- under the lock ------------------------------------------------------------------------------------

    def _look(self, now: float, deadline: float | None) -> None:
        with self._lock:
            if self.limit.look(now, self._slots - self._least, self._least <= 0, deadline):
                self._follow()
                self._least = len(self._free) + 1  # who leaves now belongs to the window before

    def _pass_on(self, now: float) -> None:
        with self._lock:
            wake = self._fill(now)
        for waiter in wake:
            waiter.wake()

    def _follow(self) -> None:
        """Have as many slots as the limit says; those that are taken stay taken until they come back."""
        limit, free = self.limit.limit, self._free
        if limit > self._slots:
            more = limit - self._slots
            self._slots = limit
            free.extend([None] * more)
        while self._slots > limit:
            try:
                free.pop()
            except IndexError:
                break
            self._slots -= 1
        self._busy = self.room.size > 0 or self._slots > limit

    def _take(self) -> bool:
        """Take a slot, whoever waits."""
        self._follow()
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _fill(self, now: float) -> list[Waiter]:
        """Let in who waits, as far as there are slots; who is to be woken."""
        wake: list[Waiter] = []
        while self.room.size and self._take():
            refused: list[Waiter] = []
            waiter = self.room.take(now, refused)
            self.counts.shed += len(refused)
            wake += refused
            if waiter is None:
                self._free.append(None)
                break
            wake.append(waiter)
            self.counts.waited += 1
            waited = now - waiter.arrived
            self.smallest_wait = waited if not self._waits else min(self.smallest_wait, waited)
            self._waits += 1
        self._follow()
        return wake

    def wait(self, waiter: Waiter, now: float) -> bool:
        """Queue `waiter`; False when it is refused at the door (`waiter.reason`). Call after `enter` said no."""
        wake: list[Waiter] = []
        with self._lock:
            if not self.room.size and self._take():  # a slot came free in between
                self.direct += 1
                waiter.state = WaiterState.ADMITTED
                accepted = True
                wake.append(waiter)
            else:
                accepted, displaced = self.room.offer(waiter, now)
                if not accepted:
                    waiter.state = WaiterState.REFUSED
                    self.counts.shed += 1
                if displaced is not None:
                    self.counts.shed += 1
                    wake.append(displaced)
                self._busy = True
                wake += self._fill(now)  # one may have come free just before that was seen
        for one in wake:
            one.wake()
        return accepted

    def abandon(self, waiter: Waiter, now: float) -> None:
        """The client of `waiter` left, or its task was cancelled; whatever it held is given back."""
        with self._lock:
            if waiter.state is WaiterState.ADMITTED:
                waiter.state = WaiterState.REFUSED
                self._free.append(None)
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

    def adopt(self, limit: LimitPolicy, room: RoomPolicy, streams: int) -> None:
        """Follow new settings; what was learned stays, within the new bounds."""
        with self._lock:
            self.limit.adopt(limit)
            self.room.policy = room
            self.most_streams = streams
            self.crowded = self.streams >= streams
            self._follow()
            self._least = len(self._free)

    def read_smallest_wait(self) -> float:
        """The least wait since the last call, in seconds; 0.0 when nobody waited (a standing queue has a high one)."""
        with self._lock:
            smallest = self.smallest_wait if self._waits else 0.0
            self.smallest_wait = 0.0
            self._waits = 0
            return smallest

    # -- streams -------------------------------------------------------------------------------------------

    def to_stream(self, now: float, seconds: float, deadline: float | None = None) -> None:
        """An answer turned out to be a stream: its slot is free, and its time to the first byte is what counts."""
        self.open_stream()
        self.leave(now, seconds, deadline)

    def open_stream(self) -> None:
        """Count one more stream, whether or not there is a slot for it: it runs already."""
        with self._lock:
            self.streams += 1
            self.crowded = self.streams >= self.most_streams

    def enter_stream(self) -> bool:
        """Take a stream's slot if one is free; `leave_stream` must follow."""
        with self._lock:
            if self.streams >= self.most_streams:
                self.counts.shed += 1
                return False
            self.streams += 1
            self.crowded = self.streams >= self.most_streams
            return True

    def leave_stream(self) -> None:
        """Give a stream's slot back."""
        with self._lock:
            self.streams -= 1
            self.crowded = self.streams >= self.most_streams


class OpenGate(Gate):
    """Lets everybody in: admission is turned off. Streams are counted by `main` all the same."""

    def __init__(self, main: Gate) -> None:
        super().__init__()
        self._main = main

    def enter(self) -> bool:
        self._main.direct += 1
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
