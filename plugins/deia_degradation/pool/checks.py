"""Active checks: each bot of a pool is asked now and then, and ejected before a client finds out that it is gone.

Off by default (`check.every: 0s`). They run on the background loop, one pool after its own clock; a bot that is out
and passes its check comes back by slow start. The last bot is never ejected by a check either.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from deia_degradation.pool.bot import BotState, Member

if TYPE_CHECKING:
    from deia_degradation.pool.pool import Pool

logger = logging.getLogger("deia_degradation")


class Checker:
    """The checks of one pool. Use on the background loop only."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._failures: dict[str, int] = {}

    async def once(self) -> None:
        """Ask every bot that has an upstream, all at the same time, and act on the answers."""
        members = [member for member in self.pool.members() if hasattr(member.target, "ready")]
        answers = await asyncio.gather(*(self._ask(member) for member in members))
        for member, detail in zip(members, answers, strict=True):
            self._act(member, detail)
        known = {member.bot.id for member in members}
        self._failures = {bot: count for bot, count in self._failures.items() if bot in known}

    async def _ask(self, member: Member) -> str:
        """What is wrong with a bot; "" when nothing."""
        try:
            readiness = await member.target.ready()
        except Exception as error:  # `ready` promises not to raise; a stranger's target may
            return f"{type(error).__name__}: {error}"
        return "" if readiness.ok else readiness.detail or "not ready"

    def _act(self, member: Member, detail: str) -> None:
        pool, bot = self.pool, member.bot.id
        if not detail:
            self._failures.pop(bot, None)
            if member.ejected_until is not None and not member.drained:
                pool.restore(bot, "an active check passed")
            return
        count = self._failures[bot] = self._failures.get(bot, 0) + 1
        if count >= pool.settings.check.failures and member.state(pool.now()) is BotState.SERVING:
            pool.eject(bot, f"{count} active checks failed: {detail[:200]}")
