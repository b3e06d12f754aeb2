"""Budgets: requests, tokens and money per period, reserved before a call and settled by what it used.

The period slides: within any stretch of its length no more than the bound is granted, by all workers of the machine
together where the accounts are shared. What an upstream says of its own limits (`retry-after`, `x-ratelimit-*`,
`anthropic-ratelimit-*`, the IETF's `ratelimit`) is believed on top.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import attrs

from deia_degradation.pool import account
from deia_degradation.pool.account import BEGUN, FLIGHT, LEFT, SET_BACK, UNTIL, Words, base
from deia_degradation.pool.ledger import Accounts, Busy

logger = logging.getLogger("deia_degradation")

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
    limits: tuple[tuple[int, int, float], ...] = attrs.field(init=False, eq=False, repr=False)
    """Of each kind that has a bound: its number, where its words begin, the bound."""

    @limits.default
    def _limits(self) -> tuple[tuple[int, int, float], ...]:
        bounds = (self.requests, self.tokens, self.money)
        return tuple((kind, base(kind), bound) for kind, bound in enumerate(bounds) if bound)

    @property
    def any(self) -> bool:
        return bool(self.limits)


@attrs.define
class Reservation:
    """What was set aside for one call, by kind."""

    at: float
    amounts: tuple[float, ...]
    over: tuple[float, ...]
    """What was over before: all else was under way beside this call, or came after it."""
    settled: bool = False


def _amount(value: float) -> float:
    """What may be set aside: figures come from applications and from upstreams, and none may give a budget more."""
    return max(0.0, value) if not math.isnan(value) else 0.0


class Budget:
    """One key's budget, in an account of its own or in one of `accounts`. Thread-safe.

    Times are monotonic seconds. Where the accounts are mapped, all workers of the machine draw on the same budget, and
    it goes on after a restart. `kinds`: how many of `KINDS` the accounts count.
    """

    __slots__ = ("_accounts", "_kinds", "bounds", "key")

    def __init__(self, bounds: Bounds, accounts: Accounts | None = None, key: str = "") -> None:
        self.bounds = bounds
        self.key = key
        self._accounts = accounts if accounts is not None else Accounts(len(KINDS), 1, learns=True)
        self._kinds = self._accounts.kinds

    def reserve(
        self, now: float, *, requests: float = 1.0, tokens: float = 0.0, money: float = 0.0
    ) -> Reservation | float:
        """Set the amounts aside, or tell when they will fit (monotonic seconds; infinity for never).

        Raises `Busy` where another worker has stopped with the accounts in its hands.
        """
        accounts = self._accounts
        amounts = (_amount(requests), _amount(tokens), _amount(money)) if accounts.kinds > 1 else (_amount(requests),)
        with accounts.lock:
            return self._reserve(accounts, now + accounts.shift, amounts)

    def _reserve(self, accounts: Accounts, now: float, amounts: tuple[float, ...]) -> Reservation | float:
        words = accounts.find(self.key, now)
        bounds = self.bounds
        account.follow(words, accounts.kinds, bounds.per, now)
        wait = now
        for kind, at, bound in bounds.limits:
            # A call that does not say how much it will use is let in while there is anything left.
            free = account.free_at(words, at, now, amounts[kind] or (1e-6 if kind else 0.0), bound)
            if free > wait:
                wait = free
        over: tuple[float, ...] = ()
        if accounts.learns:
            wait, over = self._told(words, now, amounts, wait)
        if wait > now:
            return wait - accounts.shift
        counted = now
        for kind, amount in enumerate(amounts):
            if amount and amount != math.inf:
                counted = account.add(words, base(kind), now, amount)
                if accounts.learns:
                    account.begin(words, accounts.kinds, kind, accounts.worker, amount)
        return Reservation(counted, amounts, over)

    def _told(
        self, words: Words, now: float, amounts: tuple[float, ...], wait: float
    ) -> tuple[float, tuple[float, ...]]:
        """When the amounts fit by what the upstream said, and what is over by now."""
        over = []
        for kind, amount in enumerate(amounts):
            at = base(kind)
            over.append(words[at + BEGUN] - words[at + FLIGHT])
            until = words[at + UNTIL]
            if wait < until <= now + SET_BACK and words[at + LEFT] < max(amount, 1e-6):
                wait = until
        return wait, tuple(over)

    def settle(
        self, reservation: Reservation, now: float, *, tokens: float | None = None, money: float | None = None
    ) -> None:
        """Replace what was set aside by what was used; None keeps the reservation, and so does what is no finite
        number. Only the first call counts."""
        self._end(reservation, now, (None, tokens, money))

    def cancel(self, reservation: Reservation, now: float) -> None:
        """Give back everything: the call was not sent."""
        self._end(reservation, now, (0.0, 0.0, 0.0))

    def _end(self, reservation: Reservation, now: float, usage: tuple[float | None, ...]) -> None:
        accounts, kinds = self._accounts, self._kinds
        at = now + accounts.shift
        try:
            with accounts.lock:
                if reservation.settled:
                    return
                reservation.settled = True
                words = accounts.find(self.key, at)
                account.follow(words, kinds, self.bounds.per, at)
                for kind, (held, used) in enumerate(zip(reservation.amounts, usage, strict=False)):
                    if accounts.learns and held and math.isfinite(held):
                        account.end(words, kinds, kind, accounts.worker, held)
                    if used is None or not math.isfinite(used):
                        continue
                    amount = max(0.0, used)
                    if amount < held:
                        account.give_back(words, base(kind), at, reservation.at, held - amount)
                    elif amount > held:
                        account.add(words, base(kind), at, amount - held)
        except Busy:
            logger.warning("the budget of %r could not be settled: what was set aside counts as used", self.key)

    def learn(
        self, kind: str, remaining: float, now: float, seconds: float, *, known: Reservation | None = None
    ) -> None:
        """The upstream says that `remaining` are left for the next `seconds`, having counted the call `known`.

        Whatever was under way beside that call it may or may not have counted, and answers overtake each other. So
        what is believed is the least that may be left; within one window our own count goes on where it says more.
        """
        accounts, which = self._accounts, KINDS.index(kind)
        try:
            with accounts.lock:
                at = now + accounts.shift
                words, first = accounts.find(self.key, at), base(which)
                if known is None:
                    beside = words[first + FLIGHT]
                else:
                    beside = words[first + BEGUN] - known.amounts[which] - known.over[which]
                left, until = remaining - max(0.0, beside), at + min(seconds, SET_BACK)
                before = words[first + UNTIL]
                if before > at and abs(before - until) <= _SAME:
                    left, until = max(left, min(remaining, words[first + LEFT])), before
                words[first + LEFT], words[first + UNTIL] = left, until
        except Busy:
            logger.warning("what is left of %r could not be noted: its next answer tells again", self.key)

    def used(self, now: float) -> dict[str, float]:
        """What counts against each bound now. Raises `Busy` when another worker holds the accounts."""
        accounts = self._accounts
        with accounts.lock:
            at = now + accounts.shift
            words = accounts.find(self.key, at)
            account.follow(words, self._kinds, self.bounds.per, at)
            return {KINDS[kind]: account.used(words, base(kind), at) for kind in range(self._kinds)}


def bounds_of(settings: Mapping[str, float] | object) -> Bounds:
    """The bounds that a `QuotaSettings` says."""
    return Bounds(
        requests=float(getattr(settings, "requests", 0.0)),
        tokens=float(getattr(settings, "tokens", 0.0)),
        money=float(getattr(settings, "money", 0.0)),
        per=float(getattr(settings, "per", 60.0)),
    )
