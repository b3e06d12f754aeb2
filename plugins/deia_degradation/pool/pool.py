"""A pool as the service sees it: its members, what answers for them, the retry budget, the quotas.

Upstreams are opened without I/O and started on the background loop; the calls themselves run on the caller's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deia_degradation.fallback.judge import Judge
from deia_degradation.fallback.retry import RetryBudget, RetryPolicy
from deia_degradation.pool.bot import Bot, BotChange, Member
from deia_degradation.pool.budget import Bounds, Budget, Budgets, bounds_of
from deia_degradation.pool.checks import Checker
from deia_degradation.pool.choice import PoolPolicy
from deia_degradation.pool.eject import EjectPolicy
from deia_degradation.pool.members import Members
from deia_degradation.settings import PoolSettings
from deia_hardening.plugin import Scope
from deia_hardening.upstream import Upstream, open_upstream

if TYPE_CHECKING:
    from deia_degradation.fallback.outgoing import Attempt, Attempts
    from deia_degradation.fallback.watch import Watcher

R = TypeVar("R")
logger = logging.getLogger("deia_degradation")


class Pool(Members):
    """Bots that can stand in for each other: `current(DegradationManager).pool("name")`.

    Thread-safe; usable from any loop. `add`, `remove`, `drain` and `restore` act at once; bots that were added at run
    time stay through reloads, those of the settings follow the settings.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        *,
        clock: Callable[[], float],
        home: Path | None = None,
        effects: Callable[[Scope], bool] | None = None,
        listener: Callable[[BotChange], None] | None = None,
        watcher: Watcher | None = None,
        look: Callable[[], None] | None = None,
    ) -> None:
        self._home = home
        self._look = look
        self._watcher = watcher
        self._learned: dict[str, Budget] = {}
        self._effects = effects
        self._given: dict[str, Bot] = {}
        self._opened: dict[tuple[str, str], Upstream] = {}
        self._leaving: list[Upstream] = []
        super().__init__(name, (), _policy(settings), clock=clock, listener=None)
        self.retry = RetryBudget(_retry(settings), clock())
        self.quotas: dict[str, Budget] = {}
        self._personal: dict[str, Budgets] = {}
        self.checker = Checker(self)
        self.checked_at = 0.0
        self.calls = 0
        """Requests and outgoing calls so far."""
        self.attempts_made = 0
        """Bots asked for them: more than `calls` by retries and hedges."""
        self._follow(settings)
        self._changes.clear()
        self._listener = listener

    def _follow(self, settings: PoolSettings) -> list[str]:
        """Take up settings; returns the ids of bots that they no longer have."""
        self.settings = settings
        self.policy = _policy(settings)
        self.judge = Judge(settings.failure)
        self.retry.policy = _retry(settings)
        for key, quota in settings.quotas.items():
            bounds = bounds_of(quota)
            held = self.quotas.get(key)
            if held is None or held.bounds != bounds:
                self.quotas[key] = Budget(bounds)
        for name, quota in (("actor", settings.actor_quota), ("conversation", settings.key_quota)):
            bounds = bounds_of(quota)
            if not bounds.any:
                self._personal.pop(name, None)
            elif name not in self._personal or self._personal[name].bounds != bounds:
                self._personal[name] = Budgets(bounds, settings.quota_keys)
        wanted = {one.id: Bot(one.id, one.upstream or None, one.weight, one.tier, one.quota) for one in settings.bots}
        gone = [bot_id for bot_id in self._given if bot_id not in wanted]
        for bot in wanted.values():
            if self._given.get(bot.id) != bot or self._given[bot.id].upstream != bot.upstream:
                self.add(bot)
        self._given = wanted
        return gone

    def adopt(self, settings: PoolSettings) -> None:
        """Follow new settings: add, change and remove the bots they name. On the background loop."""
        for bot_id in self._follow(settings):
            self.remove(bot_id, "no longer in the settings")

    def add(self, bot: Bot) -> None:
        """Add `bot`, or put it in the place of the one with its id (whose state stays).

        Raises SettingsError for an upstream that can't be opened; then nothing changed.
        """
        target = self._open(bot)
        super().add(bot)
        member = self.member(bot.id)
        if member is not None:
            member.target = target

    def _open(self, bot: Bot) -> Any:
        upstream = bot.upstream
        if upstream is None:
            return None
        if callable(upstream):
            return upstream
        key = (bot.id, str(upstream))
        opened = self._opened.get(key)
        if opened is None:
            repeatable = None
            if self._effects is not None:
                effects = self._effects

                def repeatable(scope: Scope) -> bool:
                    return scope.get("method") in ("GET", "HEAD", "OPTIONS") and not effects(scope)

            opened = open_upstream(
                str(upstream), settings=self.settings.upstream, home=self._home, name=bot.id, repeatable=repeatable
            )
            self._opened[key] = opened
        return opened

    def remove(self, bot_id: str, reason: str = "") -> bool:
        """Take a bot out; calls in progress end as they will. False when there is none of that id."""
        member = self.member(bot_id)
        done = super().remove(bot_id, reason)
        if member is not None:
            self._learned.pop(f"bot:{bot_id}", None)
            for key in [key for key in self._opened if key[0] == bot_id]:
                self._leaving.append(self._opened.pop(key))
        return done

    def upstreams(self) -> tuple[Upstream, ...]:
        """What was opened for its bots."""
        return tuple(self._opened.values())

    async def follow_upstreams(self) -> None:
        """Start what was added and stop what was removed. On the background loop; a failure is logged, not raised:
        its bot then fails its calls and is passed over."""
        for upstream in self._opened.values():
            try:
                await upstream.start()
            except Exception as error:
                logger.error("pool %s: bot %s could not be started: %s", self.name, upstream.name, error)
        while self._leaving:
            await _stop(self._leaving.pop())

    async def stop_upstreams(self) -> None:
        """Stop everything that was opened. On the background loop."""
        for upstream in (*self._opened.values(), *self._leaving):
            await _stop(upstream)
        self._leaving.clear()

    # -- budgets -------------------------------------------------------------------------------------------

    def budget_of(self, member: Member) -> Budget:
        """The budget that a bot draws on: the settings', else one for what its upstream tells of its limits."""
        quota = member.bot.quota
        if quota and quota in self.quotas:
            return self.quotas[quota]
        key = quota or f"bot:{member.bot.id}"
        return self._learned.get(key) or self._learned.setdefault(key, Budget(Bounds()))

    def sharing(self, member: Member) -> list[Member]:
        """The members that draw on the same budget, itself included."""
        key = member.bot.quota
        return [one for one in self.members() if one is member or (key and one.bot.quota == key)]

    def personal_budgets(self, actor: str, key: str | None) -> list[tuple[str, Budget]]:
        """The budgets of the actor and the conversation that a call draws on."""
        found = []
        for name, value in (("actor", actor), ("conversation", key)):
            budgets = self._personal.get(name)
            if budgets is not None and value:
                found.append((name, budgets.get(value)))
        return found

    def exhausted(self, member: Member, seconds: float) -> None:
        """The upstream said 429 or 529: the bots of its quota key rest for `seconds`."""
        now = self._clock()
        if member.bot.quota:
            self.rest(member.bot.quota, now + seconds, now)
            budget = self.quotas.get(member.bot.quota)
            if budget is not None:
                budget.rest(now + seconds)
        else:
            self.rest_bot(member, now + seconds, now)

    # -- outgoing calls ------------------------------------------------------------------------------------

    def attempts(
        self, *, tokens: float = 0.0, money: float = 0.0, key: str | None = None, effects: bool = False,
        first_within: float | None = None, stall: float | None = None, once: bool = False,
    ) -> Attempts:  # fmt: skip
        """One outgoing call with its fallbacks: `async for attempt in pool.attempts(): async with attempt: …`.

        `tokens` and `money` are set aside from the budgets and settled by `attempt.usage`. `key` is the conversation:
        its budget, and with `affinity` its bot. With `effects` a call is repeated only when it provably was not sent.
        `first_within` and `stall` are seconds and replace the settings'; `once` forgoes the fallback.
        """
        from deia_degradation.fallback.outgoing import Attempts

        if self._look is not None:
            self._look()
        return Attempts(
            self, self._watcher, tokens=tokens, money=money, key=key, effects=effects, first_within=first_within,
            stall=stall, once=once,
        )  # fmt: skip

    async def call(
        self, send: Callable[[Attempt], Awaitable[R]], *, tokens: float = 0.0, money: float = 0.0,
        key: str | None = None, effects: bool = False, first_within: float | None = None, stall: float | None = None,
    ) -> R:  # fmt: skip
        """Call `await send(attempt)` with one bot after another until one succeeds; returns its result.

        Raises what the last attempt raised, or `NoBotLeft` when no bot can take the call. Options as for `attempts`.

        Example:
            answer = await pool.call(lambda a: clients[a.bot.id].ask(question), tokens=800, key=conversation)
        """
        from deia_degradation.fallback.outgoing import call

        attempts = self.attempts(
            tokens=tokens, money=money, key=key, effects=effects, first_within=first_within, stall=stall
        )
        return await call(attempts, send)


async def _stop(upstream: Upstream) -> None:
    try:
        await upstream.stop()
    except Exception as error:
        logger.error("upstream %s could not be stopped: %s", upstream.name, error)


def _policy(settings: PoolSettings) -> PoolPolicy:
    eject = settings.eject
    return PoolPolicy(
        eject=EjectPolicy(threshold=eject.threshold if eject.enabled else float("inf"), floor=float(eject.floor)),
        backoff_min=float(eject.backoff),
        backoff_max=float(eject.backoff_max),
        slow_start=max(1e-6, float(eject.slow_start)),
    )


def _retry(settings: PoolSettings) -> RetryPolicy:
    retry = settings.retry
    return RetryPolicy(retry.attempts, float(retry.ratio), float(retry.per_second))
