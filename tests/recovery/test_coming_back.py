"""After a loss, damage or a wish: the state comes back from its backups, and what it was is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deia_hardening.testing import running
from deia_recovery import LeaseLost
from deia_recovery.service import DisasterRecovery

from .serving import Bot, app, bots, invoke, jobs, journal, settings


async def test_a_lost_state_is_restored_at_start_and_never_begun_empty(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
        await bots.put("b2", Bot("shipped"))
        await up.core.plugins["recovery"].host.blocking(up.service(DisasterRecovery).backups.ship)
    shutil.rmtree(home / "state" / "recovery")
    async with running(app, settings(home)) as up:
        assert (await up.get("/get")).body == b"one"
        assert await bots.get("b2") == Bot("shipped")
        recovery = up.service(DisasterRecovery)
        assert recovery.opened.restored
        assert recovery.generation.number == 2
    (entry,) = [e for e in journal(home) if e.get("kind") == "recovery.restored"]
    assert "missing" in entry


async def test_a_damaged_state_is_restored_beside_and_kept(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    database = home / "state" / "recovery" / "g000001" / "state.db"
    data = bytearray(database.read_bytes())
    data[len(data) // 2] ^= 1
    database.write_bytes(data)
    async with running(app, settings(home)) as up:
        assert (await up.get("/get")).body == b"one"
        assert up.service(DisasterRecovery).opened.restored
    assert database.read_bytes() == bytes(data)


@pytest.mark.parametrize("what", ["gone", "empty", "cut"])
async def test_a_log_that_is_gone_or_cut_is_no_state_that_verifies(home: Path, what: str) -> None:
    more = {"snapshots": [], "log_limit": "64MiB"}
    async with running(app, settings(home, **more)) as up:
        await bots.put("b0", Bot("first"))
        recovery = up.service(DisasterRecovery)
        recovery.engine.checkpoints.run = lambda **_: False  # as if killed: the last writes are in the log only
        for i in range(20):
            await bots.put(f"b{i}", Bot("x" * 200))
        await invoke(up, "recovery.take")
        for i in range(20, 40):
            await bots.put(f"b{i}", Bot("x" * 200))
    log = home / "state" / "recovery" / "g000001" / "state.db-wal"
    data = log.read_bytes()
    frames = len(data.rstrip(b"\0"))
    if what == "gone":
        log.unlink()
    else:
        log.write_bytes(b"" if what == "empty" else data[: frames // 2])
    async with running(app, settings(home, **more)) as up:
        assert await bots.count() == 40
        opened = up.service(DisasterRecovery).opened
        assert opened.restored
        assert "were shipped" in opened.live.problems[0].detail


async def test_damage_without_a_backup_refuses_to_start_and_says_what_to_do(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await up.get("/put")
    shutil.rmtree(home / "backups")
    database = home / "state" / "recovery" / "g000001" / "state.db"
    data = bytearray(database.read_bytes())
    data[5000] ^= 1
    database.write_bytes(data)
    with pytest.raises(Exception, match="no backup to restore it from"):
        async with running(app, settings(home)):
            pass
    assert database.read_bytes() == bytes(data)


async def test_with_another_key_nothing_is_touched_and_the_start_says_so(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    shutil.rmtree(home / "state" / "recovery")
    (home / "keys" / "recovery.key").write_text("00" * 32)
    with pytest.raises(Exception, match="right key"):
        async with running(app, settings(home)):
            pass


async def test_restoring_while_serving_goes_back_to_a_point_in_time(home: Path) -> None:
    import datetime as dt

    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
        await bots.put("b1", Bot("wanted"))
        recovery = up.service(DisasterRecovery)
        await __import__("anyio").sleep(0.02)
        at = dt.datetime.fromtimestamp(recovery.host.clock.wall(), dt.UTC)
        await __import__("anyio").sleep(0.02)
        await bots.put("b1", Bot("by mistake"))
        from deia_recovery.operations import RestoreInput

        dry = await invoke(up, "recovery.restore", RestoreInput(at=at.isoformat(), dry_run=True))
        assert dry.result["dry_run"]
        assert await bots.get("b1") == Bot("by mistake")
        done = await invoke(up, "recovery.restore", RestoreInput(at=at.isoformat()))
        assert done.result["generation"] == 2
        assert await bots.get("b1") == Bot("wanted")
        await bots.put("b3", Bot("after"))
    async with running(app, settings(home)) as up:
        assert await bots.get("b1") == Bot("wanted")
        assert await bots.get("b3") == Bot("after")


async def test_a_restore_fences_who_held_a_task_before_it(home: Path) -> None:
    from deia_recovery.operations import RestoreInput

    async with running(app, settings(home, snapshots=[])) as up:
        await jobs.submit({"n": 1})
        before = await jobs.claim("w1")
        await before.checkpoint({"page": 2})
        await invoke(up, "recovery.take")
        await invoke(up, "recovery.restore", RestoreInput())
        with pytest.raises(LeaseLost):
            await before.complete()
        after = await jobs.claim("w2")
        assert (after.id, after.state, after.attempt) == (before.id, {"page": 2}, 2)
        assert after.token >> 40 == 2
        assert after.token > before.token
        await after.complete()
        assert (await jobs.stats()).done == 1


WORKER = textwrap.dedent(
    """
    import asyncio, sys
    from deia_hardening.testing import running
    from deia_recovery import Registry

    bots = Registry("bots", dict)

    async def app(scope, receive, send): ...

    async def main():
        async with running(app, {"home": sys.argv[1], "recovery": {"reserve": "0", "snapshots": []}}):
            print((await bots.get("b1"))["name"], flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                if line.startswith("write"):
                    await bots.put("b9", {"name": "from the other worker"})
                print((await bots.get("b1"))["name"], flush=True)
    asyncio.run(main())
    """
)


async def test_another_worker_follows_a_restore_and_writes_into_the_new_generation(home: Path) -> None:
    import anyio

    from deia_recovery.operations import RestoreInput

    async with running(app, settings(home, snapshots=[])) as up:
        await bots.put("b1", Bot("first"))
        await invoke(up, "recovery.take")
        snapshot = (await invoke(up, "recovery.list")).snapshots[0]["id"]
        at = up.service(DisasterRecovery).host.clock.wall()
        await anyio.sleep(0.02)
        await bots.put("b1", Bot("second"))
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def say(line: str = "") -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            if line:
                child.stdin.write(line + "\n")
                child.stdin.flush()
            return child.stdout.readline().strip()

        try:
            assert await anyio.to_thread.run_sync(say) == "second"
            import datetime as dt

            when = dt.datetime.fromtimestamp(at + 0.01, dt.UTC).isoformat()
            await invoke(up, "recovery.restore", RestoreInput(snapshot=snapshot, at=when))
            assert await bots.get("b1") == Bot("first")
            assert await anyio.to_thread.run_sync(say, "read") == "first"
            assert await anyio.to_thread.run_sync(say, "write") == "first"
            assert await bots.get("b9") == Bot("from the other worker")
            assert up.service(DisasterRecovery).generation.number == 2
        finally:
            child.kill()
            await anyio.to_thread.run_sync(child.communicate)
