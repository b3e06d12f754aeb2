"""The whole plugin on a disk that is really full, under folders that are really read-only, beside other processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening.testing import faults, running
from deia_recovery import Registry, StateUnavailable, TaskQueue
from deia_recovery.service import DisasterRecovery

pytestmark = [pytest.mark.fault, pytest.mark.blocking]

names: Registry[str] = Registry("names", str)
jobs: TaskQueue[int] = TaskQueue("jobs", int)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": (await names.get("a") or "-").encode()})


def settings(home: Path, **more: Any) -> dict[str, Any]:
    return {"home": str(home), "recovery": {"reserve": "0", "snapshots": [], **more}}


@pytest.fixture
def disk() -> Iterator[Path]:
    faults.need("tmpfs")
    with faults.small_disk(mib=24) as folder:
        yield folder


@asynccontextmanager
async def nearly_full(disk: Path, leave: int) -> AsyncIterator[Any]:
    inbox = [{"path": "/hook", "verify": "none"}]
    async with running(app, settings(disk / "home", reserve="2MiB", log_limit="1MiB", inbox=inbox)) as up:
        await names.put("a", "before")
        await jobs.submit(1)
        yield up
        faults.release(disk)


async def eventually(call: Any) -> Any:
    """What `call` gives once there is room again; the state looks at the disk once a second."""
    with anyio.fail_after(30):
        while True:
            try:
                return await call()
            except StateUnavailable:
                await anyio.sleep(0.05)


@pytest.mark.parametrize("leave", [1 << 20, 0])
async def test_on_a_full_disk_new_work_is_refused_old_work_is_finished_and_it_heals(disk: Path, leave: int) -> None:
    async with nearly_full(disk, leave) as up:
        task = await jobs.claim("w")
        faults.fill(disk, leave=leave)
        with anyio.fail_after(30):
            while True:
                try:
                    await names.put("b", "x" * 2000)
                except StateUnavailable:
                    break
                await anyio.sleep(0.05)
        refused = await up.post("/hook", b'{"n": 1}')
        assert (refused.status, refused.headers["retry-after"]) == (507, "5")
        with pytest.raises(StateUnavailable):
            await jobs.submit(2)
        assert (await up.get("/")).body == b"before"
        assert up.core.plugins["recovery"].health().state.name in ("DEGRADED", "FAILED")
        if leave:
            await task.checkpoint({"page": 1})
            await task.complete("done")
        before = await jobs.stats()
        faults.release(disk)
        await eventually(lambda: names.put("a", "after"))
        assert (await up.get("/")).body == b"after"
        assert (await up.post("/hook", b'{"n": 1}')).status == 200
        assert await eventually(lambda: jobs.submit(3))
        assert (await jobs.stats()).depth == before.depth + 1


async def test_under_a_read_only_folder_it_says_so_and_nothing_is_lost(disk: Path) -> None:
    home = disk / "home"
    async with running(app, settings(home)):
        await names.put("a", "kept")
    subprocess.run(["mount", "--bind", str(home), str(home)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(home)], check=True)
        with pytest.raises(Exception, match=r"can't be written|[Rr]ead-only"):
            async with running(app, settings(home)):
                await names.put("a", "lost")
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
    async with running(app, settings(home)) as up:
        assert await names.get("a") == "kept"
        assert up.service(DisasterRecovery).verdict.kind in ("clean", "unknown")


READER = textwrap.dedent(
    """
    import asyncio, sys
    from deia_hardening.testing import running
    from deia_recovery import Registry
    names = Registry("names", str)
    async def app(scope, receive, send): ...
    async def main():
        settings = {"home": sys.argv[1], "recovery": {"reserve": "0", "snapshots": []}}
        async with running(app, settings):
            await names.get("a")
            print("up", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(await names.get("a"), flush=True)
    asyncio.run(main())
    """
)


async def test_another_worker_reads_each_write_once_it_is_acknowledged(home: Path) -> None:
    async with running(app, settings(home)):
        await names.put("a", "0")
        child = subprocess.Popen(
            [sys.executable, "-c", READER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert await asyncio.to_thread(child.stdout.readline) == "up\n"
            for number in range(200):
                await names.put("a", str(number))
                if number % 3 == 0:
                    await names.put("other", str(number))
                child.stdin.write("read\n")
                child.stdin.flush()
                assert await asyncio.to_thread(child.stdout.readline) == f"{number}\n"
        finally:
            child.kill()
            await asyncio.to_thread(child.communicate)


async def test_a_child_that_was_forked_off_keeps_no_lock_and_no_verdict(home: Path) -> None:
    """multiprocessing's fork while the service is up: its death is no crash, its life no owner."""
    async with running(app, settings(home)):
        await names.put("a", "x")
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
        bare = os.fork()
        if bare == 0:
            import time

            time.sleep(60)
            os._exit(0)
    try:
        async with running(app, settings(home)) as up:
            assert up.service(DisasterRecovery).verdict.evidence == "the last run recorded its clean stop"
            assert await names.get("a") == "x"
            await names.put("a", "y")
    finally:
        for one in (pid, bare):
            os.kill(one, 9)
            os.waitpid(one, 0)
