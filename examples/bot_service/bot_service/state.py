"""The service's durable state: what is acknowledged is on disk, survives any crash, and every process sees it."""

from __future__ import annotations

from typing import Any

from bot_service.models import Bot, Job, LastScaling, Mailbox
from deia_recovery import Assignments, Registry, TaskQueue

bots = Registry("bots", Bot)
mailboxes = Registry("mailboxes", Mailbox)
scalings = Registry("scalings", LastScaling)
tasks = TaskQueue("tasks", Job)
assignments = Assignments("assignments")


async def running_bots() -> list[str]:
    """The ids of the bots that shall run, in order."""
    return sorted(bot_id for bot_id, bot in await bots.items() if bot.state == "running")


async def change_bot(bot_id: str, **fields: Any) -> Bot:
    """Set fields of a registered bot, atomically. Raises LookupError for an unknown one."""

    def changed(bot: Bot | None) -> Bot:
        if bot is None:
            raise LookupError(f"no bot {bot_id!r} is registered")
        return bot.model_copy(update=fields)

    return await bots.update(bot_id, changed)
