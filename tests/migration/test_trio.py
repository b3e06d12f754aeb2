"""The same under trio: split, rollback, drained and cut streams, a version that can't be reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from deia_hardening.settings import Ratio, Seconds
from deia_hardening.testing import ASGIRecorder, http_scope, websocket_scope
from deia_hardening.types import Receive, Scope, Send
from deia_migration import Limits, MigrationManager, Plan, Step

from .test_unreached import Away

HALF = Plan(steps=(Step(weight=Ratio("50%"), gate="manual"),), promote="manual", limits=Limits(drain=Seconds("100ms")))


@pytest.fixture(params=["asyncio", "trio"])
def served(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    return lambda main: anyio.run(main, backend=request.param)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
    await anyio.sleep_forever()


def test_split_promotion_and_rollback(pair: Any, until: Any, served: Any) -> None:
    async def main() -> None:
        async with pair.up() as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=HALF)
            await until(lambda: manager.status().weight == 0.5)
            first = {}
            for user in range(60):
                answer = await live.post("/", headers=[(b"x-user", str(user).encode())])
                first[user] = answer.body
            assert set(first.values()) == {b"old", b"new"}
            await until(lambda: sum(manager.status().requests[name] for name in ("old", "new")) == 60)
            await manager.rollback(reason="enough")
            assert (await live.post("/", headers=[(b"x-user", b"1")])).body == b"old"
            await until(lambda: manager.status().phase == "rolled-back")
        assert pair.new.lifespans == ["up", "down"]

    served(main)


def test_streams_and_websockets_are_cut_at_the_deadline(pair: Any, until: Any, served: Any) -> None:
    async def main() -> None:
        pair.new.behaviour = endless
        async with pair.up() as live, anyio.create_task_group() as group:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),), promote="manual",
                                                limits=HALF.limits))  # fmt: skip
            await until(lambda: manager.status().weight == 1)
            stream = ASGIRecorder(live.app, http_scope("GET", "/"), {"type": "http.request"}, hang=True)
            socket = ASGIRecorder(live.app, websocket_scope("/ws"), {"type": "websocket.connect"}, hang=True)
            group.start_soon(stream.run)
            group.start_soon(socket.run)
            await until(lambda: len(stream.sent) == 2 and len(socket.sent) == 1)
            await manager.rollback()
            await until(lambda: manager.status().phase == "rolled-back", "the drain's end")
            await until(lambda: stream.sent[-1].get("more_body") is False)
            assert socket.sent[-1]["code"] == 1012

    served(main)


def test_what_can_not_be_reached_is_waited_for(pair: Any, until: Any, served: Any) -> None:
    async def main() -> None:
        async with pair.up() as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=HALF)
            await until(lambda: manager.status().weight == 0.5)
            await manager.promote(full=True)
            await until(lambda: manager.status().phase == "done")
            pair.new.behaviour = Away(2)
            answer = await live.post("/", body=b"order")
            assert (answer.status, answer.body) == (200, b"new: order")

    served(main)


def test_an_exception_of_the_app_passes_as_it_is_and_counts(pair: Any, until: Any, served: Any) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no such bot")

    async def main() -> None:
        async with pair.up() as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=HALF)
            await until(lambda: manager.status().weight == 0.5)
            pair.old.behaviour = broken
            raised = 0
            for user in range(20):
                answer = await live.post("/", headers=[(b"x-user", str(user).encode())])
                raised += isinstance(answer.error, LookupError)
            assert raised
            await until(lambda: manager.status().requests["old_failed"] == raised)

    served(main)
