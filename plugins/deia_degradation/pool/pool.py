"""A pool as the service sees it: its members, what answers for them, the retry budget, the quotas.

Upstreams are opened without I/O and started on the background loop; the calls themselves run on the caller's loop.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deia_degradation.fallback.judge import Judge
from deia_degradation.fallback.retry import RetryBudget, RetryPolicy
from deia_degradation.pool.bot import Bot, BotChange, Member
from deia_degradation.pool.budget import KINDS, Bounds, Budget, bounds_of
from deia_degradation.pool.checks import Checker
from deia_degradation.pool.choice import PoolPolicy
from deia_degradation.pool.eject import EjectPolicy
from deia_degradation.pool.ledger import Ledger
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
        ledger: Ledger | None = None,
        rested: Callable[[str, float], None] | None = None,
    ) -> None:
        self._home = home
        self._look = look
        self._ledger = ledger or Ledger()
        self._rested = rested
        self._watcher = watcher
        self._effects = effects
        self._given: dict[str, Bot] = {}
        self._opened: dict[tuple[str, str], Upstream] = {}
        self._leaving: list[Upstream] = []
        super().__init__(name, (), _policy(settings), clock=clock, listener=None)
        self.retry = RetryBudget(_retry(settings), clock())
        self._budgets: dict[str, Budget] = {}
        self._quotas = self._ledger.accounts("quotas", len(KINDS), _QUOTAS, learns=True)
        self._personal: dict[str, Bounds] = {}
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
        self._bounds = {key: bounds_of(quota) for key, quota in settings.quotas.items()}
        self._budgets.clear()
        personal = {"actor": bounds_of(settings.actor_quota), "conversation": bounds_of(settings.key_quota)}
        self._personal = {what: bounds for what, bounds in personal.items() if bounds.any}
        if self._personal:
            self._callers = self._ledger.accounts(_callers(self.name), len(KINDS), settings.quota_keys * 2)
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
            self._budgets.pop(budget_key(member.bot), None)
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
        key = budget_key(member.bot)
        found = self._budgets.get(key)
        if found is None:
            bounds = self._bounds.get(member.bot.quota) if member.bot.quota else None
            found = self._budgets[key] = Budget(bounds or Bounds(), self._quotas, f"{self.name}\n{key}")
        return found

    def usage(self, now: float) -> dict[str, dict[str, float]]:
        """What counts against the settings' quotas now, by key and kind. Raises `Busy`."""
        found = {}
        for key, bounds in self._bounds.items():
            used = Budget(bounds, self._quotas, f"{self.name}\nquota:{key}").used(now)
            found[key] = {KINDS[kind]: round(used[KINDS[kind]], 6) for kind, _, _ in bounds.limits}
        return found

    def sharing(self, member: Member) -> list[Member]:
        """The members that draw on the same budget, itself included."""
        key = member.bot.quota
        return [one for one in self.members() if one is member or (key and one.bot.quota == key)]

    def personal_budgets(self, actor: str, key: str | None) -> list[tuple[str, Budget]]:
        """The budgets of the actor and the conversation that a call draws on."""
        values = {"actor": actor, "conversation": key}
        return [
            (what, Budget(bounds, self._callers, f"{what}\n{value}"))
            for what, bounds in self._personal.items()
            if (value := values[what])
        ]

    def exhausted(self, member: Member, seconds: float) -> None:
        """The upstream said 429 or 529: the bots of its quota key rest for `seconds`, on the other workers too."""
        key = budget_key(member.bot)
        self.rest(key, seconds)
        if self._rested is not None:
            self._rested(key, seconds)

    def rest(self, key: str, seconds: float) -> None:
        """Leave the bots of a quota key alone (`quota:KEY`), or one that shares none (`bot:ID`); 0 ends it."""
        now = self._clock()
        self.rest_until(lambda bot: budget_key(bot) == key, now + seconds if seconds else 0.0, now)

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


_QUOTAS = 800
"""Quota keys, and bots that share none, whose limits are kept in mind over all pools."""


def budget_key(bot: Bot) -> str:
    """What the bot's budget and rests go by."""
    return f"quota:{bot.quota}" if bot.quota else f"bot:{bot.id}"


def _callers(pool: str) -> str:
    """A file's name for the budgets of a pool's actors and conversations."""
    return f"callers-{hashlib.blake2b(pool.encode(), digest_size=6).hexdigest()}"


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
