"""A pool as the service sees it: its members, what answers for them, the retry budget, the quotas.

Upstreams are opened without I/O and started on the background loop; the calls themselves run on the caller's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deia_degradation.fallback.judge import Judge
from deia_degradation.fallback.retry import RetryBudget, RetryPolicy
from deia_degradation.pool.bot import Bot, BotChange, Member
from deia_degradation.pool.budget import Budget, bounds_of
from deia_degradation.pool.eject import EjectPolicy
from deia_degradation.pool.members import Members, PoolPolicy
from deia_degradation.settings import PoolSettings
from deia_hardening.plugin import Scope
from deia_hardening.upstream import Upstream, open_upstream

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
    ) -> None:
        self._home = home
        self._effects = effects
        self._given: dict[str, Bot] = {}
        self._opened: dict[tuple[str, str], Upstream] = {}
        self._leaving: list[Upstream] = []
        super().__init__(name, (), _policy(settings), clock=clock, listener=None)
        self.retry = RetryBudget(_retry(settings), clock())
        self.quotas: dict[str, Budget] = {}
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

    def quota_of(self, member: Member) -> Budget | None:
        """The budget that a bot draws on, or None."""
        return self.quotas.get(member.bot.quota) if member.bot.quota else None

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
