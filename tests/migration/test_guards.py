"""What stops a rollout besides the judge: the error budget at 100%, webhooks, and versions that answer nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deia_hardening.plugin import Scope
from deia_hardening.settings import Ratio, Seconds
from deia_hardening.types import Receive, Send
from deia_migration import Guards, JudgePlan, MigrationManager, Plan, Step

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """A bare TCP server; yields its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


# -- the error budget ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promoted", [False, True])
async def test_at_full_weight_the_error_budget_rolls_back(pair: Any, until: Any, promoted: bool) -> None:
    """There is no old version to compare with any more: a share of the users in a window decides."""
    guards = Guards(budget=Ratio("50%"), budget_keys=5, budget_window=Seconds("60s"))
    plan = Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),), promote="manual", guards=guards)
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=plan)
        await until(lambda: manager.status().weight == 1)
        pair.new.headers = [(b"mcp-session-id", b"s")]  # a session of the old version keeps it from being retired
        pair.old.headers = [(b"mcp-session-id", b"old")]
        if promoted:
            manager._engine.table.bind(1, manager._router.app.number, -1.0, int(manager._host.clock.wall()))
            await manager.promote(full=True)
            assert manager.status().phase == "promoted"
        for user in range(4):
            await live.post("/", client=(f"10.0.{user}.1", 1))
        pair.new.behaviour = broken
        for user in range(9):
            assert (await live.post("/", client=(f"10.1.{user}.1", 1))).status in (500, 200)
        await until(lambda: manager.status().latched, "the budget")
        assert "users failed within" in manager.status().reason
        assert (await live.post("/", client=("10.2.0.1", 1))).body == b"old"


async def test_one_users_failures_are_no_reason_at_full_weight(pair: Any, until: Any) -> None:
    plan = Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),), promote="manual", guards=Guards(budget_keys=5))
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=plan)
        await until(lambda: manager.status().weight == 1)
        pair.new.behaviour = broken
        for number in range(50):
            await live.post("/", headers=[(b"x-user", str(number).encode())])  # as many names, one network
        await until(lambda: manager.status().requests["new_failed"] >= 50)
        await asyncio.sleep(0.05)
        assert not manager.status().latched


# -- webhooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "ends"), [(204, "passed"), (403, "refused"), (500, "waits")])
async def test_a_webhook_opens_its_gate_or_refuses(pair: Any, until: Any, status: int, ends: str) -> None:
    asked: list[bytes] = []

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        asked.append(head + await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())

    async with listening(hook) as url:
        plan = {
            "steps": [{"weight": "20%", "gate": "webhook", "webhook": "ci"}, {"weight": "40%", "gate": "manual"}],
            "promote": "manual",
        }
        async with pair.up(webhooks={"ci": f"{url}/gate?x=1"}, plans={"ci": plan}, webhook_timeout="100ms") as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan="ci")
            if ends == "passed":
                await until(lambda: manager.status().weight == 0.4, "the next step")
            elif ends == "refused":
                await until(lambda: manager.status().phase == "rolled-back")
                assert "webhook refused" in manager.status().reason
            else:  # its own fault says nothing about the version: it is asked again
                await until(lambda: len(asked) >= 2)
                assert manager.status().weight == 0.2
    assert asked[0].startswith(b"POST /gate?x=1 HTTP/1.1\r\n")
    assert b'"weight":0.2' in asked[0]


# -- versions that answer nonsense ---------------------------------------------------------------------------------


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x00\xff HELO garbage\r\n\r\n" * 3)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(10_000):
        writer.write(b"x-flood: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("handler", [garbage, flood, cut_off, silent])
async def test_a_version_that_answers_nonsense_is_rolled_back_and_its_users_hear_of_it(
    pair: Any, until: Any, handler: Handler
) -> None:
    async with listening(handler) as url:
        plan = Plan(
            steps=(Step(weight=Ratio("50%"), gate="manual"),), promote="manual",
            judge=JudgePlan(), guards=Guards(unready=0),
        )  # fmt: skip
        async with pair.up(versions={"v2": {"target": url}}) as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=plan)
            await until(lambda: manager.status().weight == 0.5)
            bad = 0
            for user in range(200):
                answer = await live.get("/", headers=[(b"x-user", str(user).encode())], client=(f"10.{user}.0.1", 1))
                whole = answer.error is None and answer.status == 200 and answer.body == b"old"
                bad += not whole
                if manager.status().latched:
                    break
            await until(lambda: manager.status().phase == "rolled-back", "the judge")
            assert "worse" in manager.status().reason
            assert bad == 0 or handler is cut_off  # a GET is answered by old, unless new's answer had begun
            for user in range(30):
                assert (await live.get("/", headers=[(b"x-user", str(user).encode())])).body == b"old"


async def test_a_version_that_begins_a_failure_and_never_ends_it_is_answered_for(pair: Any, until: Any) -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await asyncio.Event().wait()

    pair.new.behaviour = half
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),), promote="manual"))
        await until(lambda: manager.status().weight == 1)
        assert (await live.get("/")).body == b"old"
        await until(lambda: manager.status().requests["new_failed"] == 1)
