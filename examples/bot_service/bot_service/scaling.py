"""Scaling: how many bots are wanted. Off in DEGRADED: the feature `scaling` says so, nothing else is checked."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import HTTPException

from bot_service.hub import hub
from bot_service.models import LastScaling, Scaling
from bot_service.settings import Limits
from bot_service.state import assignments, bots, change_bot, running_bots, scalings, tasks
from deia_hardening import current, feature
from deia_recovery import transaction

LAST = "last"


async def evaluate() -> Scaling:
    """What is running, what waits, and what would be done."""
    limits = current(Limits)
    stats = await tasks.stats()
    running = len(await running_bots())
    places = running * limits.tasks_per_bot
    load = min(1.0, len(await assignments.all()) / places) if places else 0.0
    suggestion: Literal["up", "down", "hold"] = "hold"
    pressed = stats.ready >= limits.scale_up_queue or load >= limits.scale_up_load
    if running < limits.min_bots or (pressed and running < limits.max_bots):
        suggestion = "up"
    elif running > limits.min_bots and not stats.ready and load <= limits.scale_down_load:
        suggestion = "down"
    last = await scalings.get(LAST) or LastScaling()
    cooldown = max(0.0, last.at + float(limits.cooldown) - time.time())
    return Scaling(
        running=running, waiting=stats.ready, load=load, allowed=feature("scaling", default=True),
        suggestion=suggestion, cooldown=cooldown,
    )  # fmt: skip


async def act(wanted: Literal["up", "down"] | None) -> Scaling:
    """Scale by one: as `wanted`, or as suggested once the cooldown is over."""
    seen = await evaluate()
    if not seen.allowed:
        raise HTTPException(503, "scaling is off while the service is degraded", headers={"retry-after": "30"})
    direction = wanted or (seen.suggestion if not seen.cooldown else "hold")
    if direction == "hold":
        return seen
    async with transaction():  # two that scale at once do not pass the limits together
        await (_launch_one() if direction == "up" else _stop_one())
        await scalings.put(LAST, LastScaling(at=time.time()))
    hub.publish("scaled", direction=direction)
    return await evaluate()


async def _launch_one() -> None:
    limits = current(Limits)
    running = await running_bots()
    if len(running) >= limits.max_bots:
        raise HTTPException(409, f"{limits.max_bots} bots run already; max_bots says how many may")
    stopped = sorted(bot_id for bot_id, _ in await bots.items() if bot_id not in running)
    if not stopped:
        raise HTTPException(409, "every registered bot runs already: register another")
    await change_bot(stopped[0], state="running", seen=time.time())


async def _stop_one() -> None:
    limits = current(Limits)
    running = await running_bots()
    if len(running) <= limits.min_bots:
        raise HTTPException(409, f"{limits.min_bots} bots are to run at least; min_bots says how many")
    await change_bot(running[-1], state="stopped")
