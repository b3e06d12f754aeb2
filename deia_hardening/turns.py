"""When a busy serving loop stands aside for the background threads of this process, so that they cost it little.

CPython gives the interpreter away when a thread blocks, or 5 ms after another asked for it. A saturated event loop
blocks for a microsecond per turn: too short for a waiting thread to wake up, but each turn wakes it in vain, at 10 to
20 µs on two processors. So whoever works in the background says here when it will next want to run, and the requests
let it: at the end of a request that finds somebody due, the loop waits until that work rests again, half a
millisecond at most, and two for one piece of work: a stalled disk holds no loop. On a loop that is not saturated
nobody is ever due for long, and nothing here happens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic as _monotonic
from typing import Any

SLICE = 0.0005
"""Seconds that one request stands aside at most."""
SHARE = 0.5
"""After each slice, long work waits as long as it was given in all, times this: it gets less and less of the time."""
PAUSE = 0.002
"""Seconds from the end of one part of long work to the next, see `Turns.part`."""
NOBODY = 0.005
"""Seconds after which a part begins though no request stood aside: then no loop is busy, for `QUIET` at least."""
QUIET = 0.1
MOST = 4 * SLICE
"""Seconds that a piece of work is given in all; then it must do without. What takes longer may be a stalled disk."""


class Turns:
    """Who works in the background, and when it wants to run. One per process; any thread may call any method.

    What is lost in a race between threads is at most the good moment, so there is no lock.
    """

    due: float = inf
    """Monotonic seconds at which somebody wants to run; read at the end of every request."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As never used (after a fork)."""
        self._until: dict[Any, float] = {}
        self._wake: dict[Any, Callable[[], None]] = {}
        self._door: SimpleQueue[None] | None = None
        self._given = 0.0
        self._own = threading.local()
        self._quiet = 0.0
        self.due = inf

    def wants(self, who: Any, at: float = 0.0, wake: Callable[[], None] | None = None) -> None:
        """`who` sleeps until `at` (monotonic seconds; 0.0: it works now); `wake` is called when its time has come."""
        self._until[who] = at
        if wake is not None:
            self._wake[who] = wake
        if at < self.due:
            self.due = at
        elif self._door is not None:
            self._settle()

    def rests(self, who: Any) -> None:
        """`who` waits for others, or has ended."""
        self._until.pop(who, None)
        self._wake.pop(who, None)
        if self._door is not None:
            self._settle()

    def begins(self, who: Any) -> None:
        """This thread works for `who` from now on."""
        self._own.who = who

    def part(self) -> None:
        """A part of this thread's work is done: let the requests go on, and return when one stands aside again.

        So work that is too long for one slice does not compete for the interpreter: a part should take no more than a
        slice. Returns at once while no loop is busy, and on a thread that `begins` was not called on.
        """
        who = getattr(self._own, "who", None)
        now = _monotonic()
        if who is None or now < self._quiet:
            return
        gate = threading.Lock()
        gate.acquire()
        self.wants(who, now + PAUSE, gate.release)
        if not gate.acquire(timeout=PAUSE + NOBODY):
            self._quiet = _monotonic() + QUIET
        self._wake.pop(who, None)
        self.wants(who)

    def waits(self) -> None:
        """This thread waits for a disk or a peer: nobody is to stand aside for it before its next `part`."""
        who = getattr(self._own, "who", None)
        if who is not None:
            self.rests(who)

    def _settle(self) -> None:
        """Let the request go on that stands aside, if nobody needs it to."""
        door = self._door
        if door is not None and min(tuple(self._until.values()), default=inf) > _monotonic():
            self._door = None
            door.put(None)

    def give(self, now: float) -> None:
        """Stand aside for who is due. At the end of a request, on its loop; returns within `SLICE`."""
        if self._door is not None:  # another thread does
            return
        waking = [who for who, at in self._until.copy().items() if at <= now]  # one step: no other thread between
        if not waking:
            self.due = min(tuple(self._until.values()), default=inf)
            return
        door: SimpleQueue[None] = SimpleQueue()
        self._door = door
        for who in waking:
            wake = self._wake.pop(who, None)
            if wake is not None:
                self._until[who] = 0.0
                wake()
        try:
            door.get(timeout=SLICE)
        except Empty:
            self._door = None
            self._given += SLICE
            now = _monotonic()
            if self._given < MOST:
                self.due = now + self._given * SHARE
                return
            self._given = 0.0
            for who, at in self._until.copy().items():
                if at <= now:
                    self._until.pop(who, None)  # until it says again that it wants to run
            self.due = min(tuple(self._until.values()), default=inf)
        else:
            self._given = 0.0
            self.due = min(tuple(self._until.values()), default=inf)


turns = Turns()
"""The process's own."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=turns.reset)
