"""The plugin on a running app: what was acknowledged is there after a stop, a crash, a loss."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from deia_hardening.testing import PluginConformance, running
from deia_recovery import Registry, StateUnavailable
from deia_recovery.service import DisasterRecovery

from .serving import Bot, app, assignments, bots, invoke, jobs, journal, settings


class TestRecovery(PluginConformance):
    name = "recovery"


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
                while ((await invoke(up, "recovery.status")).result["shipped"] or 0) < revision:
                    await anyio.sleep(0.02)
        finally:
            go.set()


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


async def test_nothing_is_written_while_the_folder_is_read_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deia_recovery.opening.writable", lambda folder: False)
    async with running(app, settings(home)):
        with pytest.raises(StateUnavailable, match="can't be written"):
            await bots.put("a", Bot("x"))


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
