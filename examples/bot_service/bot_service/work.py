"""Workers: one per launched bot. Each claims tasks, assigns them to its bot, has them done and says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bot_service.bots import arithmetic, statistics, summary
from bot_service.hub import hub
from bot_service.models import Bot
from bot_service.settings import Limits
from bot_service.state import assignments, bots, running_bots, tasks
from deia_audit import record
from deia_degradation import Attempt, DegradationManager
from deia_hardening import NotEnabled, current
from deia_recovery import LeaseLost, transaction

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
    """The places of this process at which running bots work, for one version of the service.

    They follow the registry: it says which bots run, and any process or version may be asked to launch or stop one.
    """

    def __init__(self, version: str = "") -> None:
        self.version = version
        self._places: dict[str, list[asyncio.Task[None]]] = {}
        self._nudge = asyncio.Event()

    def look(self) -> None:
        """The registry has changed: follow it now."""
        self._nudge.set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Work while the block runs; at its end what is unfinished goes back to the queue."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._keep([])

    async def _follow(self) -> None:
        while True:
            limits = current(Limits)
            self._nudge.clear()
            try:
                await self._keep(await running_bots())
            except Exception:
                logger.exception("which bots shall run could not be read; those that run go on")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), float(limits.idle_wait))

    async def _keep(self, running: Sequence[str]) -> None:
        """Give each running bot its places, and end those of all others."""
        for bot_id in running:
            if bot_id not in self._places:
                places = range(current(Limits).tasks_per_bot)
                self._places[bot_id] = [asyncio.create_task(self._serve(bot_id)) for _ in places]
        ended = [place for bot_id in set(self._places) - set(running) for place in self._places.pop(bot_id)]
        for place in ended:
            place.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _serve(self, bot_id: str) -> None:
        while True:
            limits = current(Limits)
            try:
                await self._one(bot_id, limits)
            except Exception:
                logger.exception("bot %s stumbled; it goes on", bot_id)
                await asyncio.sleep(float(limits.retry_after))

    async def _one(self, bot_id: str, limits: Limits) -> None:
        task = await tasks.claim(
            bot_id, wait=float(limits.idle_wait), lease=float(limits.task_lease), bot=bot_id, version=self.version
        )
        if task is None:
            return
        try:
            async with transaction():  # both or none: no task is ever half assigned
                await assignments.assign(task.id, bot_id, take_over=True)
                await task.emit({"progress": "started", "bot": bot_id})
            record("bot.assigned", target=("task", task.id), reason=f"claimed by {bot_id}", kind="bot")
            hub.publish("task.started", task=task.id, bot=bot_id)
            answer = await ask(task.body.skill, task.body.text)
            await self._finish(bot_id, task, answer, limits)
        except asyncio.CancelledError:  # the bot was stopped: the next one takes the task up at once
            with contextlib.suppress(LeaseLost):
                async with transaction():
                    await assignments.release(task.id)
                    await task.release()
            raise
        except LeaseLost:
            raise  # somebody else has the task now
        except Exception as error:  # the work itself stumbled: again in a moment, a dead letter after a few times
            async with transaction():
                await assignments.release(task.id)
                await task.fail(error, retry_in=float(limits.retry_after))
            raise

    async def _finish(self, bot_id: str, task: Any, answer: dict[str, Any], limits: Limits) -> None:
        async with transaction():
            if answer["status"] == 200:
                await task.emit({"progress": "done"})
                await task.complete(answer["result"])
            else:
                final = answer["status"] < 500  # the caller's mistake does not get better
                await task.fail(answer.get("error", "the bot failed"), retry_in=float(limits.retry_after), final=final)
            await assignments.release(task.id)
            await bots.update(bot_id, _done)
        hub.publish("task.finished", task=task.id, bot=bot_id, ok=answer["status"] == 200)


def _done(bot: Bot | None) -> Bot:
    if bot is None:
        raise LookupError("the bot was removed while it worked")
    return bot.model_copy(update={"done": bot.done + 1, "seen": time.time()})
