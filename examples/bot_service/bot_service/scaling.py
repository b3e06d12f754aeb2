"""Scaling: how many bots are wanted. Off in DEGRADED: the feature `scaling` says so, nothing else is checked."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import HTTPException

from bot_service.hub import hub
from bot_service.models import Scaling
from bot_service.settings import Limits
from bot_service.state import bots, tasks
from bot_service.work import workers
from deia_hardening import current, feature

_last = 0.0


async def evaluate() -> Scaling:
    """What is running, what waits, and what would be done."""
    limits = current(Limits)
    stats = await tasks.stats()
    running = len(workers.running)
    places = running * limits.tasks_per_bot
    load = workers.busy / places if places else 0.0
    suggestion: Literal["up", "down", "hold"] = "hold"
    if running < limits.max_bots and (stats.ready >= limits.scale_up_queue or load >= limits.scale_up_load):
        suggestion = "up"
    elif running > limits.min_bots and not stats.ready and load <= limits.scale_down_load:
        suggestion = "down"
    cooldown = max(0.0, _last + float(limits.cooldown) - time.monotonic()) if _last else 0.0
    return Scaling(
        running=running, waiting=stats.ready, load=load, allowed=feature("scaling", default=True),
        suggestion=suggestion, cooldown=cooldown,
    )  # fmt: skip


async def act(wanted: Literal["up", "down"] | None) -> Scaling:
    """Scale by one: as `wanted`, or as suggested once the cooldown is over."""
    global _last
    seen = await evaluate()
    if not seen.allowed:
        raise HTTPException(503, "scaling is off while the service is degraded", headers={"retry-after": "30"})
    direction = wanted or (seen.suggestion if not seen.cooldown else "hold")
    if direction == "up":
        await _launch_one()
    elif direction == "down":
        await _stop_one()
    if direction != "hold":
        _last = time.monotonic()
        hub.publish("scaled", direction=direction)
    return await evaluate()


async def _launch_one() -> None:
    limits = current(Limits)
    if len(workers.running) >= limits.max_bots:
        raise HTTPException(409, f"{limits.max_bots} bots run already")
    for bot_id, bot in await bots.items():
        if bot_id not in workers.running:
            workers.launch(await bots.update(bot_id, lambda _, bot=bot: bot.model_copy(update={"state": "running"})))
            return
    raise HTTPException(409, "every registered bot runs already: register another")


async def _stop_one() -> None:
    running = workers.running
    if len(running) <= current(Limits).min_bots:
        raise HTTPException(409, "min_bots are left: none may go")
    bot_id = running[-1]
    await workers.stop(bot_id)
    await bots.update(bot_id, lambda bot: bot.model_copy(update={"state": "stopped"}) if bot else bot)
