"""Bots that an operator has drained: on every worker of the home, and also after a restart.

They stand in the home's store and on its mapped page, as the pin does, so a worker follows at its next request or
outgoing call. A drain holds here first and is stored after: a dead store never keeps a bot in use. What code does by
`pool.drain(…)` is that process's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deia_degradation import fields
from deia_degradation.pool.pool import budget_key

if TYPE_CHECKING:
    from deia_degradation.pool.pool import Pool
    from deia_degradation.service import DegradationManager

logger = logging.getLogger("deia_degradation")

FIELD = "drained"
_REASON = 80
"""Characters of a reason that are kept: the page has 3 KiB for all its fields."""

Wanted = dict[str, dict[str, str]]
"""Pool, bot, reason."""


def read(value: Any) -> Wanted:
    """What the page says; what can't be read drains nobody. Pure."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(pool): {str(bot): str(reason) for bot, reason in bots.items()}
        for pool, bots in value.items()
        if isinstance(bots, Mapping)
    }


class Drains:
    """The drains of one app in this process. `follow` and `apply`: any thread; the rest: the background loop."""

    def __init__(self, manager: DegradationManager) -> None:
        self._manager = manager
        self._wanted: Wanted = {}

    def follow(self, value: Any) -> None:
        """Drain and restore what another worker, or an earlier life, has stored differently. No I/O."""
        before, self._wanted = self._wanted, read(value)
        for name, pool in self._manager.pools.items():
            old, new = before.get(name, {}), self._wanted.get(name, {})
            for bot in old.keys() - new.keys():
                pool.restore(bot, "by hand, on another worker")
            self.apply(name, pool)

    def apply(self, name: str, pool: Pool) -> None:
        """Drain those of `pool` that are to be drained and are not."""
        for bot, reason in self._wanted.get(name, {}).items():
            pool.drain(bot, reason)

    async def drain(self, pool: Pool, bot: str, reason: str) -> bool:
        """Send nothing more to a bot, on every worker. False when there is none of that id."""
        if not pool.drain(bot, reason):
            return False
        await self._store(lambda wanted: wanted.setdefault(pool.name, {}).__setitem__(bot, reason[:_REASON]))
        return True

    async def restore(self, pool: Pool, bot: str, reason: str) -> bool:
        """End a drain, or its quota key's rest, on every worker, an ejection in this one. False when there is none of
        that id."""
        member = pool.member(bot)
        if member is None:
            return False
        key = budget_key(member.bot)
        pool.rest(key, 0.0)
        self._manager.rests.end(pool.name, key)
        if bot in self._wanted.get(pool.name, {}):
            await self._store(lambda wanted: wanted.get(pool.name, {}).pop(bot, None))
        return pool.restore(bot, reason)

    async def _store(self, change: Callable[[Wanted], object]) -> None:
        def changed(value: Any) -> Wanted:
            wanted = read(value)
            change(wanted)
            return {pool: bots for pool, bots in wanted.items() if bots}

        try:
            self._wanted = await fields.change(self._manager.host.store, FIELD, changed)
        except Exception:
            logger.exception("the drain holds in this process only: the home's store did not take it")
            change(self._wanted)
