"""The plugin on a running app: what was acknowledged is there after a stop, a crash, a loss."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening import protect
from deia_hardening.context import SYSTEM
from deia_hardening.operations import Call
from deia_hardening.surface import Surface
from deia_hardening.testing import PluginConformance, running
from deia_recovery import Assignments, LeaseLost, Registry, StateUnavailable, TaskQueue, transaction
from deia_recovery.service import DisasterRecovery


@attrs.frozen
class Bot:
    name: str


bots = Registry("bots", Bot)
jobs: TaskQueue[dict[str, Any]] = TaskQueue("jobs", dict)
assignments = Assignments()


class TestRecovery(PluginConformance):
    name = "recovery"


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
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def invoke(up: Any, name: str, given: Any = None) -> Any:
    surface = up.core.services.get(Surface)
    last = None
    operation = surface.operations()[name]
    async for item in surface.invoke(name, given if given is not None else operation.input(), Call(SYSTEM)):
        last = item
    return last


async def test_module_level_handles_find_the_app_and_keep_what_it_wrote(home: Path) -> None:
    async with running(app, settings(home)) as up:
        assert (await up.get("/get")).body == b"-"
        assert (await up.get("/put")).body == b"one"
    async with running(app, settings(home)) as up:
        assert (await up.get("/get")).body == b"one"
        recovery = up.service(DisasterRecovery)
        assert recovery.verdict.kind == "clean"
        assert (await jobs.stats()).ready == 1
        assert [a.bot for a in await assignments.all()] == ["b1"]


async def test_an_app_that_uses_no_state_makes_none(home: Path) -> None:
    async with running(app, settings(home)):
        pass
    assert not (home / "state" / "recovery").exists()


CHILD = textwrap.dedent(
    """
    import asyncio, os, sys
    from deia_hardening.testing import running
    from deia_recovery import Registry, TaskQueue
    from pathlib import Path

    numbers = Registry("numbers", int)
    jobs = TaskQueue("jobs", dict)

    async def app(scope, receive, send): ...

    async def main():
        async with running(app, {"home": sys.argv[1], "recovery": {"reserve": "0"}}):
            await jobs.submit({"n": 1})
            await jobs.claim("w")
            for i in range(100000):
                await numbers.put(str(i), i)
                print(i, flush=True)
    asyncio.run(main())
    """
)


async def test_after_kill_9_all_that_was_acknowledged_is_there_and_the_verdict_is_crash(home: Path) -> None:
    import anyio

    def crash() -> int:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(home)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        last = -1
        for line in child.stdout:
            last = int(line)
            if last >= 200:
                break
        child.kill()
        for line in child.stdout.read().splitlines():
            last = int(line)
        child.wait()
        child.stdout.close()
        return last

    last = await anyio.to_thread.run_sync(crash)
    numbers: Registry[int] = Registry("numbers", int)
    async with running(app, settings(home)) as up:
        recovery = up.service(DisasterRecovery)
        assert recovery.verdict.kind == "crash"
        assert up.core.verdict == "crash"
        found = dict(await numbers.items(limit=100_000))
        assert all(found.get(str(i)) == i for i in range(last + 1))
        task = await jobs.claim("w2")
        assert task is not None, "what was in flight is leased again"
        assert task.attempt == 2
    assert [e["verdict"] for e in journal(home) if e.get("kind") == "recovery.opened"] == ["first", "crash"]


async def test_snapshots_are_taken_on_schedule_verified_and_listed(home: Path) -> None:
    more = {"snapshots": [{"what": ["registry"], "every": "1s"}, {"what": ["all"], "every": "1d"}]}
    async with running(app, settings(home, **more)) as up:
        await up.get("/put")
        deadline = time.monotonic() + 60
        kinds: set[str] = set()
        while kinds != {"all", "registry"} and time.monotonic() < deadline:
            await __import__("anyio").sleep(0.1)
            kinds = {",".join(e["what"]) for e in journal(home) if e.get("kind") == "recovery.snapshot"}
        assert kinds == {"all", "registry"}
        listed = (await invoke(up, "recovery.list")).snapshots
        assert all(one["verified"] > 0 for one in listed)


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


async def test_shipping_goes_on_while_another_task_of_the_rounds_takes_long(home: Path) -> None:
    import threading

    import anyio

    async with running(app, settings(home, snapshots=[], ship_every="50ms", measure_every="250ms")) as up:
        recovery = up.service(DisasterRecovery)
        begun, go = threading.Event(), threading.Event()
        recovery.measures.update = lambda: begun.set() or go.wait(30)
        await bots.put("b1", Bot("first"))
        try:
            with anyio.fail_after(25):
                while not begun.is_set():
                    await anyio.sleep(0.02)
                revision = await bots.put("b2", Bot("meanwhile"))
                while (await invoke(up, "recovery.status")).result["shipped"] < revision:
                    await anyio.sleep(0.02)
        finally:
            go.set()


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


async def test_a_manifest_that_can_not_be_read_keeps_every_chunk_and_is_said(home: Path) -> None:
    async with running(app, settings(home, snapshots=[], retention={"grace": "0s"})) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
        recovery = up.service(DisasterRecovery)
        vault = recovery.backups.vault(recovery.generation.store).folder
        (manifest,) = (vault / "snapshots").iterdir()
        good = manifest.read_bytes()
        manifest.write_bytes(good.replace(b'"rows"', b'"rowz"'))
        (vault / "chunks" / "stray").write_bytes(b"x")
        blocking = recovery.host.blocking
        assert (await blocking(recovery.backups.prune))["chunks"] == 0
        assert any("nothing is removed" in text for text in recovery.complaints())
        manifest.write_bytes(good)
        assert (await blocking(recovery.backups.prune))["chunks"] == 1
        assert recovery.complaints() == []


async def test_rehearsal_and_verification_prove_and_are_remembered(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
        assert (await invoke(up, "recovery.verify")).ok
        report = (await invoke(up, "recovery.rehearse")).result
        assert report["rows"]["registry"] == 1
        status = (await invoke(up, "recovery.status")).result
        assert status["proven_restore"]
        assert (await invoke(up, "recovery.scrub")).result["problems"] == []
        health = up.core.health()["recovery"]
        assert health.state == "ok", health


async def test_depth_and_age_of_queues_and_the_proof_are_metrics(home: Path) -> None:
    import anyio

    async with running(app, settings(home, measure_every="250ms")) as up:
        await up.get("/put")

        def values() -> dict[str, float]:
            return {
                f.name: child.value
                for f in up.core.metrics
                for key, child in f.items()
                if key in ((), ("jobs", "ready"))
            }

        with anyio.fail_after(30):
            while values().get("recovery_queue_depth") != 1:
                await anyio.sleep(0.05)
        await invoke(up, "recovery.take")
        await invoke(up, "recovery.rehearse")
        assert 0 <= values()["recovery_proven_restore_age_seconds"] < 60


async def test_protected_objects_come_back(home: Path) -> None:
    kept: dict[str, bytes] = {"value": b"before"}
    protect("counter", dump=lambda: kept["value"], load=lambda data: kept.update(value=data))
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    kept["value"] = b"lost in the crash"
    async with running(app, settings(home)):
        assert kept["value"] == b"before"


async def test_nothing_is_written_while_the_folder_is_read_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deia_recovery.opening.writable", lambda folder: False)
    async with running(app, settings(home)):
        with pytest.raises(StateUnavailable, match="can't be written"):
            await bots.put("a", Bot("x"))


async def test_files_folders_and_databases_come_back_on_a_new_machine(home: Path, tmp_path: Path) -> None:
    import sqlite3

    import anyio

    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "a.bin").write_bytes(b"x" * 3_000_000)
    (data / "link").symlink_to("sub/a.bin")

    def fill() -> None:
        connection = sqlite3.connect(tmp_path / "app.db")
        connection.execute("CREATE TABLE t(x)")
        connection.execute("INSERT INTO t VALUES(7)")
        connection.commit()
        connection.close()

    await anyio.to_thread.run_sync(fill)
    more = {"protect": [{"name": "data", "path": str(data)}, {"name": "app", "path": str(tmp_path / "app.db")}]}
    async with running(app, settings(home, **more)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    shutil.rmtree(data)
    (tmp_path / "app.db").unlink()
    shutil.rmtree(home / "state")
    async with running(app, settings(home, **more)):
        assert (data / "sub" / "a.bin").read_bytes() == b"x" * 3_000_000
        assert (data / "link").read_bytes() == b"x" * 3_000_000

        def look() -> Any:
            connection = sqlite3.connect(tmp_path / "app.db")
            try:
                return connection.execute("SELECT x FROM t").fetchall()
            finally:
                connection.close()

        assert await anyio.to_thread.run_sync(look) == [(7,)]


async def test_a_protected_file_that_is_not_there_is_said_and_the_state_is_backed_up(
    home: Path, tmp_path: Path
) -> None:
    names = ["later.bin", "100%25 of? #1.db"]
    protect = [{"name": f"f{i}", "path": str(tmp_path / name)} for i, name in enumerate(names)]
    protect.append({"name": "folder", "path": str(tmp_path / "folder"), "kind": "folder"})
    async with running(app, settings(home, snapshots=[], protect=protect)) as up:
        await up.get("/put")
        first = (await invoke(up, "recovery.take")).result
        recovery = up.service(DisasterRecovery)
        assert len(first["missing"]) == 3
        assert any("later.bin" in text for text in recovery.complaints())
        (tmp_path / names[0]).write_bytes(b"x")
        (tmp_path / "folder").mkdir()
        await __import__("anyio").to_thread.run_sync(_small_database, tmp_path / names[1])
        assert (await invoke(up, "recovery.take")).result["missing"] == ()
        assert recovery.complaints() == []
    shutil.rmtree(home / "state")
    for name in names:
        (tmp_path / name).unlink()
    async with running(app, settings(home, snapshots=[], protect=protect)) as up:
        assert (await up.get("/get")).body == b"one"
        assert (tmp_path / names[0]).read_bytes() == b"x"
        assert (tmp_path / names[1]).stat().st_size > 0


def _small_database(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t(x)")
    connection.close()


@pytest.mark.parametrize("where", ["keys", "keys/recovery.key", "state", "state/recovery", "", "..", "backups", "link"])
async def test_keys_and_control_state_can_not_be_protected_by_any_name(home: Path, where: str) -> None:
    (home / "keys").mkdir(parents=True)
    (home / "link").symlink_to("keys")
    with pytest.raises(Exception, match="never in a backup"):
        async with running(app, settings(home, protect=[{"name": "data", "path": str(home / where)}])):
            pass


async def test_a_starlette_handler_that_lets_a_full_disk_pass_answers_507(home: Path) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def put(request: Request) -> PlainTextResponse:
        await bots.put("a", Bot("x"))
        return PlainTextResponse("stored")

    async with running(Starlette(routes=[Route("/put", put, methods=["POST"])]), settings(home)) as up:
        assert (await up.post("/put")).body == b"stored"
        up.service(DisasterRecovery).state.closed_for = "the disk is full"
        answer = await up.post("/put")
        assert answer.status == 507
        assert answer.headers["retry-after"] == "5"


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
