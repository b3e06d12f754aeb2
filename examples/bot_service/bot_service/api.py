"""The API: bots, tasks, assignments, scaling, messages, events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from bot_service import scaling
from bot_service.hub import hub
from bot_service.models import Bot, BotSpec, Job, Mailbox, Message, Scaling, Task, TaskRequest
from bot_service.settings import Limits
from bot_service.state import assignments, bots, change_bot, mailboxes, running_bots, tasks
from bot_service.work import Workers
from deia_hardening import current, inject
from deia_recovery import UnknownTask, transaction

router = APIRouter(prefix="/api")
Settings = Annotated[Limits, Depends(inject(Limits))]


def workers_of(request: Request) -> Workers:
    """This process's workers of the version that answers."""
    workers: Workers = request.app.state.workers
    return workers


Here = Annotated[Workers, Depends(workers_of)]


async def known(bot_id: str) -> Bot:
    bot = await bots.get(bot_id)
    if bot is None:
        raise HTTPException(404, f"no bot {bot_id!r} is registered")
    return bot


@router.post("/bots", status_code=201)
async def register(spec: BotSpec) -> Bot:
    """Register a bot. The answer means that it is on disk."""

    def add(present: Bot | None) -> Bot:
        if present is not None:
            raise HTTPException(409, f"bot {spec.id!r} is registered already")
        return Bot(id=spec.id, skill=spec.skill, registered=time.time())

    bot = await bots.update(spec.id, add)
    hub.publish("bot.registered", bot=bot.id)
    return bot


@router.get("/bots")
async def list_bots(limits: Settings, stale: bool = False) -> list[Bot]:
    """All bots; with `stale`, those that run and have said nothing for too long."""
    found = [bot for _, bot in await bots.items()]
    if not stale:
        return found
    silent = time.time() - float(limits.stale_after)
    return [bot for bot in found if bot.state == "running" and max(bot.seen, bot.registered) < silent]


@router.post("/bots/{bot_id}/launch")
async def launch(bot: Annotated[Bot, Depends(known)], limits: Settings, workers: Here) -> Bot:
    """Launch a registered bot."""
    async with transaction():  # two launches at once do not pass the limit together
        running = await running_bots()
        if bot.id not in running and len(running) >= limits.max_bots:
            raise HTTPException(409, f"{limits.max_bots} bots run already; max_bots says how many may")
        bot = await change_bot(bot.id, state="running", seen=time.time())
    workers.look()
    hub.publish("bot.launched", bot=bot.id)
    return bot


@router.post("/bots/{bot_id}/stop")
async def stop(bot: Annotated[Bot, Depends(known)], workers: Here) -> Bot:
    """Stop a bot; its tasks go back to the queue."""
    bot = await change_bot(bot.id, state="stopped")
    workers.look()
    hub.publish("bot.stopped", bot=bot.id)
    return bot


@router.post("/tasks", status_code=202)
async def submit(request: TaskRequest) -> Task:
    """Submit a task. The answer means that it is on disk; the same key twice is one task."""
    job = Job(text=request.text, skill=request.skill)
    submitted = await tasks.submit(job, key=request.key, priority=request.priority)
    hub.publish("task.submitted", task=submitted.id)
    return await task_status(submitted.id)


@router.get("/tasks/{task_id}")
async def task_status(task_id: str) -> Task:
    """Where a task stands, and its result."""
    try:
        info = await tasks.get(task_id)
    except UnknownTask:
        raise HTTPException(404, f"no task {task_id!r}") from None
    return Task(
        id=info.id, state=info.state, skill=info.body.skill, priority=info.priority,
        attempts=info.attempts, result=info.result, error=info.error,
    )  # fmt: skip


@router.get("/tasks/{task_id}/progress")
async def progress(task_id: str, last_event_id: Annotated[int, Header(alias="last-event-id")] = 0) -> StreamingResponse:
    """A task's progress as server-sent events; `Last-Event-ID` goes on where a connection broke."""
    await task_status(task_id)

    async def stream() -> AsyncIterator[str]:
        async for event in tasks.follow(task_id, after=last_event_id):
            yield f"id: {event.number}\ndata: {json.dumps(event.value)}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


@router.get("/assignments")
async def list_assignments() -> list[dict[str, str]]:
    """Which bot works on which task."""
    return [{"task": one.task, "bot": one.bot} for one in await assignments.all()]


@router.get("/scaling/status")
async def scaling_status() -> Scaling:
    """How many bots run, how much waits, and what scaling would do."""
    return await scaling.evaluate()


@router.post("/scaling/evaluate")
async def scaling_evaluate(workers: Here) -> Scaling:
    """Look, and scale up or down by one where that is allowed and wanted."""
    return await scaled(None, workers)


@router.post("/scaling/up")
async def scaling_up(workers: Here) -> Scaling:
    """Launch one more bot."""
    return await scaled("up", workers)


@router.post("/scaling/down")
async def scaling_down(workers: Here) -> Scaling:
    """Stop one bot."""
    return await scaled("down", workers)


async def scaled(wanted: Literal["up", "down"] | None, workers: Workers) -> Scaling:
    seen = await scaling.act(wanted)
    workers.look()
    return seen


@router.post("/bots/{bot_id}/messages", status_code=201)
async def send_message(message: Message, bot: Annotated[Bot, Depends(known)], limits: Settings) -> dict[str, int]:
    """Put a message into a bot's mailbox."""
    now = time.time()

    def add(box: Mailbox | None) -> Mailbox:
        fresh = [one for one in (box or Mailbox()).messages if one.at > now - float(limits.message_ttl)]
        if len(fresh) >= limits.mailbox_size:
            raise HTTPException(507, f"the mailbox of {bot.id!r} is full")
        return Mailbox(messages=[*fresh, message.model_copy(update={"at": now})])

    return {"waiting": len((await mailboxes.update(bot.id, add)).messages)}


@router.get("/bots/{bot_id}/messages")
async def read_messages(bot: Annotated[Bot, Depends(known)], limits: Settings) -> list[Message]:
    """Read a bot's mailbox, which empties it: a GET with effects, so `requests.effects` names it."""
    taken: list[Message] = []

    def take(box: Mailbox | None) -> Mailbox:
        taken[:] = (box or Mailbox()).messages
        return Mailbox()

    await mailboxes.update(bot.id, take)
    oldest = time.time() - float(limits.message_ttl)
    return [message for message in taken if message.at > oldest]


@router.websocket("/events")
async def events(websocket: WebSocket) -> None:
    """Everything that happens in this process, as it happens."""
    limits = current(Limits)
    if hub.count >= limits.listeners:
        await websocket.close(code=1013, reason="too many listeners")
        return
    await websocket.accept()

    async def tell() -> None:
        async for event in hub.listen(limits.listener_backlog):
            await websocket.send_json(event)

    telling = asyncio.create_task(tell())
    try:
        while True:
            await websocket.receive()  # nothing is expected but the client's leaving
    except (WebSocketDisconnect, RuntimeError):
        return
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
