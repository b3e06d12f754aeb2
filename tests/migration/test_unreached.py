"""A version that can't be reached has acted on nothing: its requests go to the other one, or wait for it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.plugin import Scope
from deia_hardening.settings import Ratio
from deia_hardening.testing import Running
from deia_hardening.types import Receive, Send
from deia_hardening.upstream import FailedBeforeStart, NotSent
from deia_migration import MigrationManager, Plan, Step

from .test_deploy import FAST, project

NOW = Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),), promote="manual")


class Away:
    """An app that can't be reached for some calls, as a child between its death and its next start."""

    def __init__(self, times: int, *, kind: type[Exception] = NotSent, consumed: bool = False) -> None:
        self.times = times
        self.kind = kind
        self.consumed = consumed
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        if self.calls <= self.times:
            if self.consumed:
                await receive()
            error = self.kind("v2", "refused", "the child is not there")
            error.consumed = self.consumed  # type: ignore[attr-defined]
            raise error
        read = (await receive()).get("body")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"new: " + read if read else b"new"})


async def promoted(live: Running, until: Any) -> MigrationManager:
    manager: MigrationManager = live.service(MigrationManager)
    await manager.start("v2", plan=NOW)
    await until(lambda: manager.status().weight == 1)
    await manager.promote(full=True)
    await until(lambda: manager.status().phase == "done")
    return manager


async def test_requests_wait_for_the_version_that_serves(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        await promoted(live, until)
        pair.new.behaviour = Away(2)
        answer = await live.post("/", body=b"order 7")
        assert (answer.status, answer.body) == (200, b"new: order 7")
        assert pair.new.behaviour.calls == 3


async def test_a_wait_of_zero_refuses_at_once_and_says_that_nothing_was_done(pair: Any, until: Any) -> None:
    async with pair.up(restart_wait=0) as live:
        await promoted(live, until)
        pair.new.behaviour = Away(1)
        answer = await live.post("/")
        assert answer.status == 503
        assert b"has not seen" in answer.body
        assert "retry-after" in answer.headers
        assert (await live.post("/")).status == 200


async def test_only_so_many_wait(pair: Any, until: Any) -> None:
    async with pair.up(waiting=1, restart_wait="300ms") as live:
        await promoted(live, until)
        pair.new.behaviour = Away(1000)
        answers = await asyncio.gather(*(live.post("/") for _ in range(5)))
        assert [answer.status for answer in answers] == [503] * 5
        pair.new.behaviour = None
        assert (await live.post("/")).status == 200  # the place was given back


async def test_what_was_taken_is_never_sent_twice(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        await promoted(live, until)
        pair.new.behaviour = Away(1, kind=FailedBeforeStart)
        assert (await live.post("/")).status == 502
        assert pair.new.behaviour.calls == 1
        pair.new.behaviour = Away(1, kind=FailedBeforeStart, consumed=True)
        assert (await live.get("/")).status == 200  # but what changes nothing may be


async def test_a_body_that_was_read_for_nothing_is_read_again_when_it_is_short(pair: Any, until: Any) -> None:
    async with pair.up(kept_body="1KiB") as live:
        await promoted(live, until)
        pair.new.behaviour = Away(2, consumed=True)
        answer = await live.post("/", body=b"order 7")
        assert (answer.status, answer.body) == (200, b"new: order 7")
        pair.new.behaviour = Away(1, consumed=True)
        assert (await live.post("/", body=b"x" * 2000)).status == 503


async def test_a_stable_version_that_is_gone_is_stood_in_for_by_the_candidate(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager = await promoted(live, until)
        await manager.start("app", plan=Plan(steps=(Step(weight=Ratio("1%"), gate="manual"),), promote="manual"))
        await until(lambda: manager.status().weight == 0.01)
        pair.new.behaviour = Away(1000)
        for user in range(20):
            answer = await live.post("/", headers=[(b"x-user", str(user).encode())])
            assert (answer.status, answer.body) == (200, b"old")


@pytest.mark.blocking
async def test_the_serving_child_is_killed_and_no_request_is_lost(pair: Any, until: Any, tmp_path: Path) -> None:
    source = project(tmp_path / "project", "second")
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(str(source), plan=FAST)
        await until(lambda: manager.status().weight == 0.5)
        await manager.promote(full=True)
        await until(lambda: manager.status().phase == "done")
        seen = set()
        for _ in range(3):
            for _ in range(5):
                answer = await live.get("/", headers=[(b"host", b"x")])
                assert answer.status == 200
                seen.add(child := int(answer.body.split()[1]))
            os.kill(child, signal.SIGKILL)  # the next request is on its way to a process that is gone
        assert (await live.get("/", headers=[(b"host", b"x")])).status == 200
        assert len(seen) == 3
