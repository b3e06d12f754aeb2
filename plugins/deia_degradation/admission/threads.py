"""Slots for what runs in threads: a gate per serving loop, bounded by the thread pool that its requests really use.

Synchronous endpoints run in the loop's thread limiter (anyio's, 40 by default), where the 41st call would queue unseen.
Their requests are admitted by its free tokens instead and wait in a room of their own, so slow synchronous calls
neither take the slots of asynchronous ones nor teach them a wrong latency. The limiter is read, never used.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from deia_degradation.admission.gate import Gate
from deia_degradation.admission.limit import LimitPolicy
from deia_degradation.admission.room import RoomPolicy


class ThreadGate(Gate):
    """Slots for requests whose endpoints run in one loop's threads. `main` is the gate that counts their streams."""

    def __init__(self, limiter: Any, main: Gate, limit: LimitPolicy, room: RoomPolicy) -> None:
        self.limiter = limiter
        self._main = main
        self._policy = limit
        self._tokens = limiter.total_tokens
        super().__init__(self._bounded(limit), room)

    def _bounded(self, limit: LimitPolicy) -> LimitPolicy:
        tokens = max(1.0, min(float(self._tokens), limit.maximum))
        return attrs.evolve(limit, initial=tokens, maximum=tokens, minimum=min(limit.minimum, tokens))

    def _take(self) -> bool:
        limiter = self.limiter
        if limiter.total_tokens != self._tokens:  # the app gave itself more threads, or fewer
            before, self._tokens = self._tokens, limiter.total_tokens
            self.limit.adopt(self._bounded(self._policy))
            if self._tokens > before:
                self.limit.restart()
        # What else the app runs in these threads counts too: whoever was let in then would queue there.
        return limiter.borrowed_tokens < self._tokens and super()._take()

    def enter(self) -> bool:
        """Take a slot if a thread is free for it and nobody waits. `leave` must follow."""
        with self._lock:
            if not self.room.size and self._take():
                self.direct += 1
                return True
            self._least = 0
            return False

    def adopt(self, limit: LimitPolicy, room: RoomPolicy, streams: int) -> None:
        with self._lock:
            self._policy = limit
        super().adopt(self._bounded(limit), room, streams)

    def to_stream(self, now: float, seconds: float, deadline: float | None = None) -> None:
        self._main.open_stream()
        self.leave(now, seconds, deadline)

    def leave_stream(self) -> None:
        self._main.leave_stream()


class ThreadGates:
    """The thread gates of one app in this process, by serving loop. Thread-safe."""

    def __init__(self, main: Gate, limit: LimitPolicy, room: RoomPolicy) -> None:
        self._main = main
        self._limit = limit
        self._room = room
        self.reset()

    def reset(self) -> None:
        """As with nobody inside (after a fork)."""
        self._lock = threading.Lock()
        self._gates: WeakKeyDictionary[Any, ThreadGate] = WeakKeyDictionary()

    def here(self) -> Gate:
        """The gate of the loop that this is called on; the main one where its threads can't be asked. About 1 µs."""
        try:
            loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            if "trio" not in sys.modules:
                return self._main
            import trio

            loop = trio.lowlevel.current_trio_token()
        gate = self._gates.get(loop)
        return self._made(loop) if gate is None else gate

    def _made(self, loop: Any) -> Gate:
        import anyio.to_thread

        try:
            limiter = anyio.to_thread.current_default_thread_limiter()
        except Exception:  # no loop of anyio's kinds: its threads are not known
            return self._main
        with self._lock:
            return self._gates.setdefault(loop, ThreadGate(limiter, self._main, self._limit, self._room))

    def all(self) -> list[ThreadGate]:
        """The gates that there are now."""
        with self._lock:
            return list(self._gates.values())

    def adopt(self, limit: LimitPolicy, room: RoomPolicy, streams: int) -> None:
        """Follow new settings; what was learned stays, within the new bounds."""
        self._limit, self._room = limit, room
        for gate in self.all():
            gate.adopt(limit, room, streams)

    def sweep(self, now: float) -> int:
        """Refuse those whose time is over and let in whom a thread is free for; how many still wait."""
        return sum(gate.sweep(now) for gate in self.all())
