"""Traffic during a rollout: the judge, sessions, streams, overrides, the shield, versions that misbehave."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from deia_hardening.plugin import Actor
from deia_hardening.settings import Ratio, Seconds
from deia_hardening.testing import ASGIRecorder, websocket_scope
from deia_hardening.types import Receive, Scope, Send
from deia_migration import Guards, JudgePlan, Limits, MigrationManager, Plan, Probe, Step

NO_HANG = Guards(every=Seconds("20ms"))


def plan(weight: str = "50%", **changes: Any) -> Plan:
    return Plan(steps=(Step(weight=Ratio(weight), gate="manual"),), promote="manual", **{"guards": NO_HANG, **changes})


async def begin(live: Any, until: Any, weight: str = "50%", **changes: Any) -> MigrationManager:
    manager: MigrationManager = live.service(MigrationManager)
    await manager.start("v2", plan=plan(weight, **changes))
    await until(lambda: manager.status().weight > 0, "the first step")
    return manager


def user(number: int) -> dict[str, Any]:
    """A request of one user, from a network of its own."""
    return {
        "headers": [(b"x-user", str(number).encode())],
        "client": (f"10.{number // 250}.{number % 250}.7", 4000),
    }


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"broken"})


async def test_a_version_that_fails_is_rolled_back_by_itself_and_gets_nothing_more(pair: Any, until: Any) -> None:
    pair.new.behaviour = fails
    async with pair.up() as live:
        manager = await begin(live, until, "10%")
        for number in range(400):
            await live.post("/", **user(number))
            if manager.status().latched:
                break
        await until(lambda: manager.status().latched, "a rollback")
        assert pair.new.requests <= 10
        before = pair.new.requests
        for number in range(100):
            assert (await live.post("/", **user(number))).body == b"old"
        assert pair.new.requests == before
        record = next(one for one in await manager.history() if one["event"] == "rollback")
        assert record["verdict"] == "roll back"
        assert record["evidence"]["failed_new"] >= 2
        assert record["evidence"]["e_rollback"] >= 100


async def test_a_fault_that_both_share_rolls_nothing_back(pair: Any, until: Any) -> None:
    pair.new.behaviour = pair.old.behaviour = fails
    async with pair.up() as live:
        manager = await begin(live, until)
        for number in range(300):
            await live.post("/", **user(number))
        await asyncio.sleep(0.05)
        assert not manager.status().latched
        assert manager.status().evidence["failed_new"] > 50


async def test_cookies_rotated_by_one_network_condemn_nobody(pair: Any, until: Any) -> None:
    pair.new.behaviour = fails
    async with pair.up() as live:
        manager = await begin(live, until, "10%")
        for number in range(300):
            request = user(number)
            await live.post("/", headers=request["headers"], client=("10.0.0.7", 4000))
        await asyncio.sleep(0.05)
        assert not manager.status().latched
        assert manager.status().evidence["failed_new"] + manager.status().evidence["failed_old"] <= 1


async def test_a_200_that_says_success_false_is_a_failure(pair: Any, until: Any) -> None:
    async def lies(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"success": false}'})

    pair.new.behaviour = lies
    async with pair.up(failure={"json": {"success": False}}) as live:
        manager = await begin(live, until, "10%")
        for number in range(400):
            await live.post("/", **user(number))
        await until(lambda: manager.status().latched, "a rollback")


async def test_a_version_that_hangs_is_rolled_back(pair: Any, until: Any) -> None:
    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    pair.new.behaviour = hangs
    async with pair.up() as live:
        guards = Guards(hang=Seconds("50ms"), every=Seconds("20ms"))
        limits = Limits(drain=Seconds("100ms"))
        manager = await begin(live, until, "10%", guards=guards, limits=limits)
        async with anyio.create_task_group() as group:
            for number in range(150):
                group.start_soon(lambda number=number: live.post("/", **user(number)))
            await until(lambda: manager.status().latched, "a rollback")
            await until(lambda: manager.status().phase == "rolled-back", "its hanging requests were ended")


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        (Probe(path="/health", status=204), "answered 200, not 204"),
        (Probe(path="/health", json={"ok": True}), "no JSON"),
    ],
)
async def test_a_failed_probe_keeps_the_weight_at_zero(pair: Any, until: Any, probe: Probe, says: str) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=plan(probes=(probe,)))
        await until(lambda: manager.status().phase == "rolled-back")
        assert says in manager.status().reason
        assert all(record["weight"] == 0 for record in await manager.history())
        assert pair.new.requests == 1


async def test_probes_that_pass_let_the_ramp_begin(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        await begin(live, until, probes=(Probe(path="/a"), Probe(path="/b", method="POST", body={"x": 1})))
        assert pair.new.requests == 2


async def test_mirrored_answers_are_compared_and_never_seen(pair: Any, until: Any) -> None:
    async def numbers(scope: Scope, receive: Receive, send: Send) -> None:
        pair.new.sent = getattr(pair.new, "sent", 0) + 1
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"what?"})

    pair.new.behaviour = numbers
    async with pair.up(mirror={"routes": ["GET /read"]}) as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=plan(mirror=Seconds("10s")))
        await until(lambda: manager.status().phase == "mirroring")
        for number in range(200):
            assert (await live.get("/read", **user(number))).body == b"old"
            assert (await live.get("/other", **user(number))).body == b"old"
            await asyncio.sleep(0)
            if manager.status().latched:
                break
        await until(lambda: manager.status().phase == "rolled-back", "differences")
        assert "status" in manager.status().reason
        assert 20 <= pair.new.sent <= 200


async def test_a_get_that_fails_on_new_is_answered_by_old_and_counts(pair: Any, until: Any) -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    for behaviour in (fails, raises):
        pair.new.behaviour = behaviour
        async with pair.up() as live:
            manager = await begin(live, until, judge=JudgePlan(distinct=1000))
            for number in range(40):
                answer = await live.get("/", **user(number))
                assert (answer.status, answer.body) == (200, b"old")
            await asyncio.sleep(0.05)
            assert manager.status().evidence["failed_new"] >= 5
            await manager.rollback(cut=True)
            await until(lambda manager=manager: manager.status().phase == "rolled-back")


async def test_what_changes_something_is_never_asked_twice(pair: Any, until: Any) -> None:
    pair.new.behaviour = fails
    async with pair.up() as live:
        await begin(live, until, judge=JudgePlan(distinct=1000))
        statuses = {(await live.post("/", **user(number))).status for number in range(40)}
        assert statuses == {200, 500}
        assert pair.old.requests + pair.new.requests == 40


def test_an_actor_is_the_judged_key_before_the_network() -> None:
    from deia_hardening.context import RequestContext
    from deia_migration.outcome import told

    context = RequestContext(None, None, scope={"client": ("10.0.0.1", 1)}, revision=None, received=0.0)  # type: ignore[arg-type]
    assert told(context, True, 0.1, False, 0.0)[2:4] == ("10.0.0.1", True)
    context.actor = Actor("user", "ann")
    assert told(context, True, 0.1, False, 0.0)[2:4] == ("10.0.0.1", True)  # only claimed
    context.actor = Actor("user", "ann", auth="token")
    assert told(context, True, 0.1, False, 0.0)[2:4] == ("ann", False)


async def test_the_apps_own_exceptions_pass_whatever_they_are(pair: Any, until: Any) -> None:
    from deia_hardening.upstream import NotSent

    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotSent("the app's own upstream", "refused", "nobody there")

    pair.old.behaviour = raises
    async with pair.up() as live:
        answer = await live.post("/")
        assert isinstance(answer.error, NotSent)
        assert answer.sent == []


async def test_websockets_that_are_refused_stay_refused(pair: Any, until: Any) -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4403})

    pair.new.behaviour = refuses
    async with pair.up() as live:
        await begin(live, until, "100%")
        socket = await ASGIRecorder(live.app, websocket_scope("/ws"), {"type": "websocket.connect"}).run()
        assert [message["type"] for message in socket.sent] == ["websocket.close"]
        assert socket.sent[0]["code"] == 4403
