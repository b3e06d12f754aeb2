"""A small service with durable state, and how its tests ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.context import SYSTEM
from deia_hardening.operations import Call
from deia_hardening.surface import Surface
from deia_recovery import Assignments, Registry, TaskQueue, transaction


@attrs.frozen
class Bot:
    name: str


bots = Registry("bots", Bot)


jobs: TaskQueue[dict[str, Any]] = TaskQueue("jobs", dict)


assignments = Assignments()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await receive()
    if scope["path"] == "/put":
        await bots.put("b1", Bot("one"))
        async with transaction():
            await jobs.submit({"n": 1}, key="k")
            await assignments.assign("t", "b1")
    found = await bots.get("b1")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (found.name if found else "-").encode()})


def settings(home: Path, **more: Any) -> dict[str, Any]:
    return {"home": str(home), "recovery": {"reserve": "0", "idle": "200ms", **more}}


def journal(home: Path) -> list[dict[str, Any]]:
    path = home / "logs" / "disaster-recovery.jsonl"
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


async def invoke(up: Any, name: str, given: Any = None) -> Any:
    surface = up.core.services.get(Surface)
    last = None
    operation = surface.operations()[name]
    async for item in surface.invoke(name, given if given is not None else operation.input(), Call(SYSTEM)):
        last = item
    return last
