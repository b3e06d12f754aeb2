"""Budgets: requests, tokens and money per period, reserved before a call and settled by what it used. Pure.

The period slides: within any stretch of its length no more than the bound is granted. What an upstream says of its
own limits (`retry-after`, `x-ratelimit-*`, `anthropic-ratelimit-*`, the IETF's `ratelimit`) is believed on top.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping

import attrs

_SLICES = 60
_SAME = 1.0
"""Seconds by which two resets of one window may differ: many are told in whole seconds."""
KINDS = ("requests", "tokens", "money")


@attrs.frozen
class Bounds:
    """At most so much per `per` seconds; 0 means no bound."""

    requests: float = 0.0
    tokens: float = 0.0
    money: float = 0.0
    per: float = 60.0

    @property
    def any(self) -> bool:
        return bool(self.requests or self.tokens or self.money)


class _Window:
    """A sliding sum in slices: an amount counts until the whole of its slice is older than the period."""

    __slots__ = ("_slices", "_width", "per", "total")

    def __init__(self, per: float) -> None:
        self.per = per
        self._width = per / _SLICES
        self._slices: deque[list[float]] = deque()
        self.total = 0.0

    def _expire(self, now: float) -> None:
        slices = self._slices
        while slices and slices[0][0] + self._width + self.per <= now:
            self.total -= slices.popleft()[1]
        if not slices:
            self.total = 0.0  # no rounding left behind

    def used(self, now: float) -> float:
        self._expire(now)
        return self.total

    def add(self, now: float, amount: float) -> None:
        self._expire(now)
        start = now - now % self._width
        if not self._slices or self._slices[-1][0] < start:
            self._slices.append([start, 0.0])
        self._slices[-1][1] += amount
        self.total += amount

    def give_back(self, when: float, amount: float) -> None:
        """Take `amount` off what was added at `when`."""
        start = when - when % self._width
        for one in reversed(self._slices):
            if one[0] <= start:
                if one[0] == start:
                    one[1] -= amount
                    self.total -= amount
                return

    def free_at(self, now: float, amount: float, bound: float) -> float:
        """When `amount` fits under `bound`: a time, infinity when it never does."""
        if amount > bound:
            return float("inf")
        self._expire(now)
        excess = self.total + amount - bound
        if excess <= 1e-9:
            return now
        for start, held in self._slices:
            excess -= held
            if excess <= 1e-9:
                return max(now, start + self._width + self.per)
        return float("inf")


@attrs.define
class _Learned:
    remaining: float
    until: float


@attrs.define
class Reservation:
    """What was set aside for one call."""

    at: float
    amounts: dict[str, float]
    over: dict[str, float]
    """What was over before: all else was under way beside this call, or came after it."""
    settled: bool = False


def _amount(value: float) -> float:
    """What may be set aside: figures come from applications and from upstreams, and none may give a budget more."""
    return max(0.0, value) if not math.isnan(value) else 0.0


class Budget:
    """One key's budget. Thread-safe."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._lock = threading.Lock()
        self._windows = {kind: _Window(bounds.per) for kind in KINDS}
        self._learned: dict[str, _Learned] = {}
        self._begun = dict.fromkeys(KINDS, 0.0)
        self._over = dict.fromkeys(KINDS, 0.0)
        """What was set aside so far, and what of that for calls that are over."""
        self._rests_until = 0.0

    def reserve(
        self, now: float, *, requests: float = 1.0, tokens: float = 0.0, money: float = 0.0
    ) -> Reservation | float:
        """Set the amounts aside, or tell when they will fit (monotonic seconds; infinity for never)."""
        amounts = {"requests": _amount(requests), "tokens": _amount(tokens), "money": _amount(money)}
        with self._lock:
            wait = self._rests_until if self._rests_until > now else now
            for kind, amount in amounts.items():
                bound = getattr(self.bounds, kind)
                # A call that does not say how much it will use is let in while there is anything left.
                needed = amount or (1e-6 if kind != "requests" else 0.0)
                if bound:
                    wait = max(wait, self._windows[kind].free_at(now, needed, bound))
                learned = self._learned.get(kind)
                if learned is not None and learned.until > now and learned.remaining < max(needed, 1e-6):
                    wait = max(wait, learned.until)
            if wait > now:
                return wait
            for kind, amount in amounts.items():
                if amount and math.isfinite(amount):
                    self._begun[kind] += amount
                    self._windows[kind].add(now, amount)
                    learned = self._learned.get(kind)
                    if learned is not None:
                        learned.remaining -= amount
            return Reservation(now, amounts, self._over.copy())

    def settle(
        self, reservation: Reservation, now: float, *, tokens: float | None = None, money: float | None = None
    ) -> None:
        """Replace what was set aside by what was used; None keeps the reservation, and so does what is no finite
        number. Only the first call counts."""
        with self._lock:
            if reservation.settled:
                return
            self._close(reservation)
            for kind, used in (("tokens", tokens), ("money", money)):
                if used is None or not math.isfinite(used):
                    continue
                held, amount = reservation.amounts[kind], max(0.0, used)
                if amount < held:
                    self._windows[kind].give_back(reservation.at, held - amount)
                elif amount > held:
                    self._windows[kind].add(now, amount - held)

    def cancel(self, reservation: Reservation) -> None:
        """Give back everything: the call was not sent."""
        with self._lock:
            if reservation.settled:
                return
            self._close(reservation)
            for kind, held in reservation.amounts.items():
                if held:
                    self._windows[kind].give_back(reservation.at, held)

    def _close(self, reservation: Reservation) -> None:
        reservation.settled = True
        for kind, held in reservation.amounts.items():
            if math.isfinite(held):
                self._over[kind] += held

    def rest(self, until: float) -> None:
        """Nothing more before then: the upstream said so."""
        with self._lock:
            self._rests_until = max(self._rests_until, until)

    def learn(
        self, kind: str, remaining: float, now: float, seconds: float, *, known: Reservation | None = None
    ) -> None:
        """The upstream says that `remaining` are left for the next `seconds`, having counted the call `known`.

        Whatever was under way beside that call it may or may not have counted, and answers overtake each other. So
        what is believed is the least that may be left; within one window our own count goes on where it says more.
        """
        with self._lock:
            if known is None:
                beside = self._begun[kind] - self._over[kind]
            else:
                beside = self._begun[kind] - known.amounts[kind] - known.over[kind]
            left, until = remaining - max(0.0, beside), now + seconds
            before = self._learned.get(kind)
            if before is not None and before.until > now and abs(before.until - until) <= _SAME:
                left, until = max(left, min(remaining, before.remaining)), before.until
            self._learned[kind] = _Learned(left, until)

    def used(self, now: float) -> dict[str, float]:
        """What counts against each bound now."""
        with self._lock:
            return {kind: window.used(now) for kind, window in self._windows.items()}


class Budgets:
    """Budgets by key, the least recently used forgotten beyond `limit`. Thread-safe.

    Keys come from clients, so their number is bounded; one that is forgotten starts afresh.
    """

    def __init__(self, bounds: Bounds, limit: int) -> None:
        self.bounds = bounds
        self.limit = limit
        self._lock = threading.Lock()
        self._table: OrderedDict[str, Budget] = OrderedDict()

    def get(self, key: str) -> Budget:
        """The budget of `key`, made at the first call."""
        with self._lock:
            found = self._table.get(key)
            if found is None:
                found = self._table[key] = Budget(self.bounds)
                while len(self._table) > self.limit:
                    self._table.popitem(last=False)
            else:
                self._table.move_to_end(key)
            return found

    def __len__(self) -> int:
        return len(self._table)


def bounds_of(settings: Mapping[str, float] | object) -> Bounds:
    """The bounds that a `QuotaSettings` says."""
    return Bounds(
        requests=float(getattr(settings, "requests", 0.0)),
        tokens=float(getattr(settings, "tokens", 0.0)),
        money=float(getattr(settings, "money", 0.0)),
        per=float(getattr(settings, "per", 60.0)),
    )
