"""Outgoing calls: what a bot asks of others (a language model, a tool server), which never pass a middleware.

An `Attempt` is one call to one bot of a pool: chosen, paid for from the budgets, judged at its end. `Attempts` gives
the next one when the last failed before anything was sent on. An upstream's 429 or 529 is neither failure nor
ejection: the bots of that quota key rest and the call moves to another key.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic, time
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import anyio

from deia_degradation.fallback.judge import retry_after
from deia_degradation.fallback.limits import told
from deia_degradation.fallback.raised import not_sent, status_of
from deia_degradation.fallback.retry import may_ask_another
from deia_degradation.fallback.watch import Watched, Watcher
from deia_degradation.pool.bot import Bot, Member, Verdict
from deia_degradation.pool.budget import Budget, Reservation
from deia_degradation.pool.ledger import Busy
from deia_hardening.context import context_variable
from deia_hardening.errors import HardeningError
from deia_hardening.upstream import Outcome

if TYPE_CHECKING:
    from deia_degradation.pool.pool import Pool

R = TypeVar("R")
_EXHAUSTED = (429, 529)
_BUSY = 0.5
"""Seconds for which a call waits for another worker that holds the budgets."""
_REST = 5.0
"""Seconds that a quota key rests when the upstream does not say."""


class NoBotLeft(HardeningError):  # noqa: N818 - a verdict, not a fault
    """No bot of the pool can take the call now. `retry_after` is in seconds."""

    def __init__(self, pool: str, why: str, seconds: float) -> None:
        self.retry_after = seconds
        super().__init__(f"pool '{pool}': {why}; nothing was sent; try again in {seconds:.0f} s")


class QuotaUsedUp(NoBotLeft):
    """The budget of the actor or the conversation is used up: another bot would not help."""


class TooSlow(HardeningError, TimeoutError):  # noqa: N818 - a verdict, not a fault
    """The bot's first content did not come in time (`first_within`, `stall`, the request's deadline)."""


class Attempt:
    """One call to one bot: `async with` it. Belongs to the task that entered it.

    Attributes:
        bot: the bot to call.
        number: 1 for the first attempt, counting up.
        reservations: what was set aside from budgets.
    """

    def __init__(self, group: Attempts) -> None:
        self._group = group
        self._member: Member | None = None
        self._reserved: list[tuple[Budget, Reservation]] = []
        self._scope: anyio.CancelScope | None = None
        self._watched: Watched | None = None
        self._started = 0.0
        self._first = 0.0
        self._last = 0.0
        self._limit = math.inf
        self._too_slow = ""
        self._tokens: float | None = None
        self._money: float | None = None
        self._rest: float | None = None
        self._failure = ""
        self.sent = False
        self.good = False
        self.number = 0

    # -- what the caller says ------------------------------------------------------------------------------

    @property
    def bot(self) -> Bot:
        """The bot to call. Raises RuntimeError outside of the `async with`."""
        if self._member is None:
            raise RuntimeError("the attempt has no bot before 'async with' was entered")
        return self._member.bot

    def alive(self) -> None:
        """A sign of life that is no content (a ping, a status line): the `stall` clock starts anew."""
        self._last = monotonic()

    def first(self) -> None:
        """The first real content is here: from now on nothing is repeated, and no time limit of ours cuts it."""
        if not self._first:
            self._first = monotonic()
            self.sent = True
            if self._watched is not None:
                self._watched.drop()

    def usage(self, *, tokens: float | None = None, money: float | None = None) -> None:
        """What the call used: settles the budgets at the end. None keeps what was set aside."""
        self._tokens = tokens if tokens is not None else self._tokens
        self._money = money if money is not None else self._money

    def headers(self, headers: Mapping[str, str]) -> None:
        """The response's headers: what they say of the upstream's limits is believed."""
        found = {name.lower(): value for name, value in headers.items()}
        pool, member = self._group.pool, self._member
        if member is None:
            return
        budget = pool.budget_of(member)
        own = next((reservation for held, reservation in self._reserved if held is budget), None)
        for one in told(found, time()):
            budget.learn(one.kind, one.remaining, monotonic(), one.seconds, known=own)

    def exhausted(self, seconds: float | None = None) -> None:
        """The upstream said that its quota is used up (429, 529): its key rests for `seconds`."""
        self._rest = _REST if seconds is None else seconds

    def failed(self, reason: str) -> None:
        """The answer is a failure though nothing was raised (`{"success": false}`)."""
        self._failure = reason or "failed"

    # -- the block -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Attempt:
        self._member, self._reserved = await self._group._taken()
        self.number = len(self._group.tried)
        now = self._started = self._last = monotonic()
        self._limit = self._group._limit(now)
        stall = self._group.stall
        at = min(self._limit, now + stall if stall else math.inf)
        if at != math.inf and self._group.watcher is not None:
            self._watched = Watched(at, self._check)
            self._group.watcher.add(self._watched)
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
        return self

    def _check(self) -> None:
        """A time limit may have passed; called on the attempt's loop."""
        if self._first or self._scope is None or self._watched is None:
            return
        now = monotonic()
        stall = self._group.stall
        if now >= self._limit:
            self._too_slow = f"no content within {self._limit - self._started:.3g} s"
        elif stall and now >= self._last + stall:
            self._too_slow = f"silent for {stall:.3g} s before its first content"
        else:
            self._watched.at = min(self._limit, self._last + stall if stall else math.inf)
            assert self._group.watcher is not None
            self._group.watcher.add(self._watched)
            return
        self._scope.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._watched is not None:
            self._watched.drop()
            self._watched = None
        if self._scope is not None:
            caught = self._scope.__exit__(kind, error, trace)
            if caught and self._too_slow:
                error = TooSlow(f"bot {self.bot.id}: {self._too_slow}; it was asked to stop")
        swallow = self._end(error)
        if isinstance(error, TooSlow) and not swallow:
            raise error
        return swallow

    def _end(self, error: BaseException | None) -> bool:
        member, pool = self._member, self._group.pool
        assert member is not None
        now = monotonic()
        seconds = (self._first or now) - self._started
        verdict, outcome, refused, reason = self._judge(error)
        pool.done(member, now, seconds, verdict, reason)
        if refused:
            pool.exhausted(member, self._rest if self._rest is not None else _REST)
        for budget, reservation in self._reserved:
            if refused or outcome is Outcome.NOT_SENT:
                budget.cancel(reservation, now)
            else:
                budget.settle(reservation, now, tokens=self._tokens, money=self._money)
        self.good = error is None and not refused and not self._failure
        return self._group._ended(self.good, outcome, refused, error)

    def _judge(self, error: BaseException | None) -> tuple[Verdict, Outcome, bool, str]:
        outcome = Outcome.STARTED if self.sent else Outcome.FAILED_BEFORE_START
        if not self.sent and not_sent(error):
            outcome = Outcome.NOT_SENT
        if self._rest is not None:
            return Verdict.NEUTRAL, outcome, True, ""
        if error is None:
            if self._failure:
                return Verdict.FAILED, outcome, False, self._failure
            return Verdict.GOOD, Outcome.COMPLETED, False, ""
        status, headers = status_of(error)
        if headers:
            self.headers({name.decode("latin-1"): value.decode("latin-1") for name, value in headers})
        if status in _EXHAUSTED:
            self._rest = retry_after(headers, _REST)
            return Verdict.NEUTRAL, outcome, True, ""
        if status is not None and 400 <= status < 500:
            return Verdict.GOOD, Outcome.STARTED, False, ""  # the bot answered: the mistake is the caller's
        if not isinstance(error, Exception):
            return Verdict.NEUTRAL, Outcome.STARTED, False, ""  # cancelled: it says nothing about the bot
        return Verdict.FAILED, outcome, False, type(error).__name__


class Attempts:
    """One outgoing call with its fallbacks: `async for attempt in …: async with attempt: …`.

    The loop ends with the first attempt that succeeds. A failed attempt's exception is held back while another bot
    can be asked, and raised when none can.
    """

    def __init__(
        self, pool: Pool, watcher: Watcher | None, *, tokens: float, money: float, key: str | None, effects: bool,
        first_within: float | None, stall: float | None, once: bool,
    ) -> None:  # fmt: skip
        self.pool = pool
        self.watcher = watcher
        self.tokens = tokens
        self.money = money
        self.key = key
        self.effects = effects
        self.once = once
        settings = pool.settings
        self.first_within = float(settings.first_within) if first_within is None else first_within
        self.stall = float(settings.stall) if stall is None else stall
        self.tried: list[Member] = []
        self._over = False
        self._held: BaseException | None = None
        """What the last attempt raised, while another bot is to be asked."""
        context = context_variable.get()
        self._deadline = None if context is None else context.deadline
        self._actor = "" if context is None else context.actor.id
        pool.retry.deposit()
        pool.calls += 1

    def __aiter__(self) -> Attempts:
        return self

    async def __anext__(self) -> Attempt:
        if self._over:
            raise StopAsyncIteration
        return Attempt(self)

    def _limit(self, now: float) -> float:
        limit = now + self.first_within if self.first_within else math.inf
        return limit if self._deadline is None else min(limit, self._deadline)

    async def _taken(self) -> tuple[Member, list[tuple[Budget, Reservation]]]:
        """`_take`, once a worker that has the budgets in its hands goes on: under load it waits for the processor."""
        until = monotonic() + _BUSY
        while True:
            try:
                return self._take()
            except Busy:
                if monotonic() > until:
                    raise NoBotLeft(
                        self.pool.name, "another worker holds the budgets and does not go on", 1.0
                    ) from None
            await anyio.sleep(_BUSY / 20)

    def _take(self) -> tuple[Member, list[tuple[Budget, Reservation]]]:
        """Choose a bot whose budgets have room, and set the amounts aside."""
        pool, now = self.pool, monotonic()
        reserved: list[tuple[Budget, Reservation]] = []
        try:
            for what, budget in pool.personal_budgets(self._actor, self.key):
                found = budget.reserve(now, tokens=self.tokens, money=self.money)
                if not isinstance(found, Reservation):
                    seconds = min(found - now, 86400.0)
                    raise QuotaUsedUp(pool.name, f"the budget of this {what} is used up", max(1.0, seconds))
                reserved.append((budget, found))
            passed: list[Member] = []
            soonest = math.inf
            while True:
                member = pool.choose(
                    now, exclude=[*self.tried, *passed], key=self.key if pool.settings.affinity else None,
                    probe=not self.effects and not self.once,
                )  # fmt: skip
                if member is None:
                    if self._held is not None:
                        raise self._held
                    wait = soonest - now if soonest != math.inf else pool.retry_after(now)
                    raise NoBotLeft(pool.name, "no bot can take the call", max(1.0, min(wait, 86400.0)))
                own = pool.budget_of(member)
                try:
                    room = own.reserve(now, tokens=self.tokens, money=self.money)
                except Busy:
                    pool.done(member, now, 0.0, Verdict.NEUTRAL)
                    raise
                if not isinstance(room, Reservation):
                    pool.done(member, now, 0.0, Verdict.NEUTRAL)
                    soonest = min(soonest, room)
                    passed += pool.sharing(member)
                    continue
                reserved.append((own, room))
                self.tried.append(member)
                pool.attempts_made += 1
                return member, reserved
        except BaseException:
            for budget, reservation in reserved:
                budget.cancel(reservation, now)
            raise

    def _ended(self, good: bool, outcome: Outcome, refused: bool, error: BaseException | None) -> bool:
        """An attempt is over: whether its exception is held back since another bot is asked."""
        self._over = True
        if good or self.once or (error is not None and not isinstance(error, Exception)):
            return False
        now = monotonic()
        remaining = None if self._deadline is None else self._deadline - now
        if not may_ask_another(
            outcome,
            repeatable=not self.effects,
            refused=refused,
            effects=self.effects,
            replayable=True,
            tried=len(self.tried),
            attempts=self.pool.retry.policy.attempts,
            remaining=remaining,
        ):
            return False
        another = self.pool.choose(now, exclude=self.tried)
        if another is None:
            return False
        self.pool.done(another, now, 0.0, Verdict.NEUTRAL)
        if not refused and not self.pool.retry.withdraw(now):
            return False
        self._over = False
        self._held = error
        return True


async def call(attempts: Attempts, send: Callable[[Attempt], Awaitable[R]]) -> R:
    """Run `send(attempt)` until one attempt succeeds; its result. Raises what the last attempt raised."""
    results: list[R] = []
    async for attempt in attempts:
        try:
            async with attempt:
                results.append(await send(attempt))
        except NoBotLeft:
            if results:  # the bots' own answer, though a failure, is better than none
                return results[-1]
            raise
        if results and (attempts._over or attempt.good):
            return results[-1]
    raise NoBotLeft(attempts.pool.name, "no attempt succeeded", 1.0)
