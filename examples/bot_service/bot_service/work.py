"""Workers: one per launched bot. Each claims tasks, assigns them to its bot, has them done and says so."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from bot_service.bots import arithmetic, statistics, summary
from bot_service.hub import hub
from bot_service.models import Bot
from bot_service.settings import Limits
from bot_service.state import assignments, bots, tasks
from deia_audit import record
from deia_degradation import Attempt, DegradationManager
from deia_hardening import NotEnabled, current
from deia_recovery import transaction

logger = logging.getLogger("bot_service")
STAND_INS = {"summary-lead": summary.lead}
SKILLS = {"summary": summary.app, "arithmetic": arithmetic.app, "statistics": statistics.app}


async def ask(skill: str, text: str) -> dict[str, Any]:
    """Have a bot with this skill do the work; when one fails, the next of its pool does it (settings: pools)."""
    try:
        pool = current(DegradationManager).pool(skill)
    except (NotEnabled, LookupError):  # degradation is off, or has no pool of that name: ask the one bot there is
        return await call(SKILLS[skill], text)

    async def send(attempt: Attempt) -> dict[str, Any]:
        answer = await call(STAND_INS.get(attempt.bot.id, SKILLS[skill]), text)
        if answer["status"] >= 500:
            raise BotFailedError(f"bot {attempt.bot.id} answered {answer['status']}")
        return answer

    return await pool.call(send)


class BotFailedError(Exception):
    """A bot answered with a server error."""


async def call(bot: Any, text: str) -> dict[str, Any]:
    """Call a bot's ASGI app in this process: `POST /work`."""
    body = json.dumps({"text": text}).encode()
    answer: dict[str, Any] = {"status": 500, "body": b""}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/work", "raw_path": b"/work", "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
        elif message["type"] == "http.response.body":
            answer["body"] += message.get("body", b"")

    await bot(scope, receive, send)
    return {"status": answer["status"], **json.loads(answer["body"])}


class Workers:
    """The running bots of this process."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self.busy = 0

    @property
    def running(self) -> list[str]:
        return sorted(self._tasks)

    def launch(self, bot: Bot) -> None:
        if bot.id not in self._tasks:
            places = range(current(Limits).tasks_per_bot)
            self._tasks[bot.id] = [asyncio.create_task(self._serve(bot.id)) for _ in places]

    async def stop(self, bot_id: str) -> None:
        places = self._tasks.pop(bot_id, [])
        for place in places:
            place.cancel()
        await asyncio.gather(*places, return_exceptions=True)
        await assignments.release_bot(bot_id)

    async def stop_all(self) -> None:
        for bot_id in self.running:
            await self.stop(bot_id)

    async def _serve(self, bot_id: str) -> None:
        while bot_id in self._tasks:
            limits = current(Limits)
            try:
                await self._one(bot_id, limits)
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.exception("bot %s stumbled; it goes on", bot_id)
                await asyncio.sleep(float(limits.retry_after))

    async def _one(self, bot_id: str, limits: Limits) -> None:
        task = await tasks.claim(bot_id, wait=float(limits.idle_wait), lease=float(limits.task_lease), bot=bot_id)
        if task is None:
            return
        self.busy += 1
        try:
            async with transaction():  # both or none: no task is ever half assigned
                await assignments.assign(task.id, bot_id, take_over=True)
                await task.emit({"progress": "started", "bot": bot_id})
            record("bot.assigned", target=("task", task.id), reason=f"claimed by {bot_id}", kind="bot")
            hub.publish("task.started", task=task.id, bot=bot_id)
            answer = await ask(task.body.skill, task.body.text)
            await self._finish(bot_id, task, answer, limits)
        finally:
            self.busy -= 1

    async def _finish(self, bot_id: str, task: Any, answer: dict[str, Any], limits: Limits) -> None:
        async with transaction():
            if answer["status"] == 200:
                await task.emit({"progress": "done"})
                await task.complete(answer["result"])
            else:
                final = answer["status"] < 500  # the caller's mistake does not get better
                await task.fail(answer.get("error", "the bot failed"), retry_in=float(limits.retry_after), final=final)
            await assignments.release(task.id)
            await bots.update(bot_id, lambda bot: _done(bot))
        hub.publish("task.finished", task=task.id, bot=bot_id, ok=answer["status"] == 200)


def _done(bot: Bot | None) -> Bot:
    if bot is None:
        raise LookupError("the bot was removed while it worked")
    return bot.model_copy(update={"done": bot.done + 1, "seen": time.time()})


workers = Workers()
