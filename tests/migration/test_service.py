"""Two versions in one process: a sticky weighted split, promotion and rollback by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deia_hardening.plugin import Actor, Problem
from deia_hardening.runtime import runtime
from deia_hardening.settings import Ratio, Seconds
from deia_hardening.testing import PluginConformance, Running
from deia_migration import MigrationManager, Phase, Plan, Step

HALF = Plan(
    steps=(Step(weight=Ratio("50%"), gate="manual"), Step(weight=Ratio("90%"), gate="manual")), promote="manual"
)


class TestMigration(PluginConformance):
    name = "migration"


async def answers(live: Running, number: int = 200) -> dict[str, str]:
    found = {}
    for user in range(number):
        answer = await live.get("/", headers=[(b"x-user", str(user).encode())])
        assert answer.status == 200
        found[str(user)] = answer.body.decode()
    return found


async def test_without_a_rollout_every_request_is_the_apps_own(pair: Any) -> None:
    async with pair.up() as live:
        assert set((await answers(live, 20)).values()) == {"old"}
        assert live.service(MigrationManager).status().phase == "none"


async def test_a_sticky_split_then_more_then_everything_then_the_old_one_is_retired(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        begun = await manager.start("v2", plan=HALF, reason="new model")
        await until(lambda: manager.status().weight == 0.5, "the first step")
        first = await answers(live)
        assert await answers(live) == first  # sticky
        assert 60 <= list(first.values()).count("new") <= 140
        await manager.promote(reason="looks good")
        await until(lambda: manager.status().weight == 0.9, "the second step")
        second = await answers(live)
        assert all(second[user] == "new" for user, version in first.items() if version == "new")
        assert list(second.values()).count("new") >= 160
        await manager.promote(full=True)
        await until(lambda: manager.status().phase == "done", "the end")
        assert set((await answers(live, 50)).values()) == {"new"}
        assert pair.new.lifespans == ["up"]
        events = [record["event"] for record in await manager.history()]
        assert events == ["started", "ready", "tested", "mirrored", "weight", "gate", "weight", "promoted", "retired"]
        assert begun.id == manager.status().rollout
    assert pair.new.lifespans == ["up", "down"]


async def test_a_rollback_is_in_force_at_the_next_request_and_latches(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=HALF)
        await until(lambda: manager.status().weight == 0.5)
        await manager.rollback(reason="users complain", actor=Actor("user", "ann", auth="socket"))
        before = pair.new.requests
        assert set((await answers(live, 50)).values()) == {"old"}
        assert pair.new.requests == before
        with pytest.raises(Problem) as refused:
            await manager.promote()
        assert refused.value.status == 409
        await until(lambda: manager.status().phase == "rolled-back")
        await until(lambda: pair.new.lifespans == ["up", "down"], "its own shutdown")
        record = next(one for one in await manager.history() if one["event"] == "rollback")
        assert record["reason"] == "users complain"
        assert record["actor"]["id"] == "ann"
        assert record["weight"] == 0


async def test_the_second_operator_hears_who_is_at_what(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=HALF, actor=Actor("user", "ann", auth="socket"))
        with pytest.raises(Problem) as refused:
            await manager.start("v2", plan=HALF, actor=Actor("user", "bob", auth="socket"))
        assert refused.value.status == 409
        assert "ann" in refused.value.detail
        assert "v2" in refused.value.detail


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (lambda manager: manager.start("v3"), 404, "v2"),
        (lambda manager: manager.start("v2", plan="careful"), 404, "careful"),
        (lambda manager: manager.rollback(), 409, "no rollout"),
        (lambda manager: manager.promote(), 409, "no rollout"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_reason(pair: Any, call: Any, status: int, says: str) -> None:
    async with pair.up() as live:
        with pytest.raises(Problem) as refused:
            await call(live.service(MigrationManager))
        assert refused.value.status == status
        assert says in refused.value.detail


async def test_a_stale_rollout_id_is_refused(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=HALF)
        with pytest.raises(Problem) as refused:
            await manager.rollback(rollout="0190-not-this-one")
        assert refused.value.status == 409


async def test_a_version_that_cannot_start_leaves_the_old_one_untouched(pair: Any, until: Any) -> None:
    pair.new.startup_error = "no database"
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=HALF)
        assert set((await answers(live, 20)).values()) == {"old"}
        await until(lambda: manager.status().phase == "rolled-back")
        assert "no database" in manager.status().reason
        assert set((await answers(live, 20)).values()) == {"old"}
        assert pair.new.requests == 0


async def test_the_promoted_version_serves_after_a_restart(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=HALF)
        await until(lambda: manager.status().weight == 0.5)
        await manager.promote(full=True)
        await until(lambda: manager.status().phase == "done")
    async with pair.up() as live:
        assert set((await answers(live, 10)).values()) == {"new"}
        status = live.service(MigrationManager).status()
        assert status.phase == Phase.DONE
        assert [one.name for one in status.versions] == ["v2"]


async def test_a_promoted_version_that_cannot_start_yet_is_tried_again(
    pair: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deia_migration.engine.AGAIN", 0.01)
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=Plan(steps=(), promote="timed", bake=Seconds("0s")))
        await until(lambda: manager.status().phase == "done")
    pair.new.startup_error = "the database is not up yet"
    async with pair.up(look="10ms") as live:
        manager = live.service(MigrationManager)
        assert (await live.post("/")).body == b"old"
        assert "until it can" in manager.status().problem
        pair.new.startup_error = ""
        await until(lambda: manager.status().versions[0].name == "v2")
        assert (await live.post("/")).body == b"new"
        assert manager.status().problem == ""


async def test_a_plan_that_runs_code_is_started_through_the_local_socket_only(pair: Any) -> None:
    from deia_hardening.plugin import Call
    from deia_migration.operations import StartInput, operations

    plans = {"tested": {"pytest": "canary", "promote": "manual"}}
    async with pair.up(plans=plans) as live:
        start = next(one for one in operations(live.service(MigrationManager)) if one.name == "migration.start")
        with pytest.raises(Problem) as refused:
            await start.handler(  # type: ignore[misc]
                StartInput(version="v2", plan="tested"), Call(Actor("user", "ann", auth="token"), local=False)
            )
        assert refused.value.status == 403


async def test_the_operations_do_the_same(pair: Any, until: Any) -> None:
    from deia_hardening.plugin import Call
    from deia_hardening.runtime import runtime
    from deia_hardening.surface import Surface
    from deia_migration.operations import RollbackInput, StartInput

    async with pair.up(plans={"half": HALF}) as live:
        surface = live.service(Surface)
        call = Call(Actor("user", "ann", auth="socket"), "by hand")

        async def invoke(name: str, value: Any) -> Any:
            async def on_background() -> Any:
                return [output async for output in surface.invoke(name, value, call)][-1]

            return await runtime().run(on_background)

        assert (await invoke("migration.start", StartInput(version="v2", plan="half"))).by == "ann"
        manager: MigrationManager = live.service(MigrationManager)
        await until(lambda: manager.status().weight == 0.5)
        assert (await invoke("migration.rollback", RollbackInput())).weight == 0


async def test_a_worker_that_missed_the_page_takes_the_weight_from_the_store(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=Plan(steps=(Step(weight=Ratio("50%"), gate="manual"),), promote="manual"))
        await until(lambda: manager.status().weight == 0.5)
        manager._router.set_weight(0.0)  # as of a rollout that was taken up while its weight rose
        await runtime().run(manager._engine.reload)
        assert manager.status().weight == 0.5
