"""What a supervisor goes through with its child: a disk that is full for a while, a flood of output, what the child
itself has started."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import ChildState, ProcessSettings, UpstreamSettings, open_upstream
from deia_hardening.upstream.child import Child, Order
from deia_hardening.upstream.process import ProcessUpstream
from deia_hardening.upstream.records import Records
from deia_hardening.upstream.rundir import ChildRecord, RunDir, process_start

APP = """
import subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % helper.pid})
"""

Supervised = Callable[[], AbstractAsyncContextManager[ProcessUpstream]]


def upstream_of(folder: Path) -> ProcessUpstream:
    process = ProcessSettings(folder=str(folder), backoff_min=Seconds(0.02), backoff_max=Seconds(0.1))
    upstream = open_upstream("process:kept_app:app", settings=UpstreamSettings(process=process), home=folder / "home")
    assert isinstance(upstream, ProcessUpstream)
    return upstream


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    (tmp_path / "kept_app.py").write_text(APP)

    @asynccontextmanager
    async def start() -> AsyncIterator[ProcessUpstream]:
        upstream = upstream_of(tmp_path)
        await upstream.start()
        try:
            yield upstream
        finally:
            await upstream.stop()

    return start


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.01)


async def gone(pid: int) -> None:
    with anyio.fail_after(30):
        while await asyncio.to_thread(process_start, pid):
            await anyio.sleep(0.01)


async def killed_and_back(upstream: ProcessUpstream) -> None:
    before = upstream.pid
    assert before
    os.kill(before, signal.SIGKILL)
    with anyio.fail_after(30):
        while upstream.pid in (None, before) or not (await upstream.ready()).ok:
            await anyio.sleep(0.01)


async def test_a_child_comes_back_when_its_record_could_not_be_written_for_a_while(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(28, "No space left on device")] * 2
    write = RunDir.write

    def fails(self: RunDir, record: ChildRecord) -> None:
        if failures:
            raise failures.pop()
        write(self, record)

    async with supervised() as upstream:
        monkeypatch.setattr(RunDir, "write", fails)
        await killed_and_back(upstream)
        assert not failures


async def test_what_a_child_is_told_while_it_starts_comes_behind_its_order(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = Child.spawn

    async def told_meanwhile(self: Child) -> None:
        self.tell(ChildState(revision=3))
        await spawn(self)

    monkeypatch.setattr(Child, "spawn", told_meanwhile)
    async with supervised() as upstream:
        assert (await upstream.ready()).ok


async def test_a_child_comes_back_when_who_is_told_of_its_end_fails(supervised: Supervised) -> None:
    def fails(reason: str) -> None:
        raise RuntimeError(reason)

    async with supervised() as upstream:
        upstream.on_death(fails)
        await killed_and_back(upstream)


async def helper_of(upstream: ProcessUpstream, call: Any) -> int:
    return int((await call(upstream)).body)


@pytest.mark.parametrize("killed", [True, False])
async def test_what_a_child_has_started_ends_with_it(supervised: Supervised, call: Any, killed: bool) -> None:
    async with supervised() as upstream:
        helper = await helper_of(upstream, call)
        assert await asyncio.to_thread(process_start, helper)
        if killed:
            await killed_and_back(upstream)
            await gone(helper)
            helper = await helper_of(upstream, call)
    await gone(helper)


PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_supervising import upstream_of
async def main():
    upstream = upstream_of(Path(sys.argv[2]))
    await upstream.start()
    print(upstream.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.fault
async def test_it_ends_too_when_the_supervisor_was_killed(supervised: Supervised, tmp_path: Path, call: Any) -> None:
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(await asyncio.to_thread(parent.stdout.readline))
            follower = upstream_of(tmp_path)
            await follower.start()
            try:
                helper = await helper_of(follower, call)
            finally:
                await follower.stop()
        finally:
            parent.kill()
    await gone(pid)
    await gone(helper)


async def test_a_flood_of_output_is_read_in_turns_with_all_else(tmp_path: Path) -> None:
    order = Order("v", "nothing:app", tmp_path, tmp_path / "v.sock", b"k" * 32, ProcessSettings())
    child = Child(order, Records("v", tmp_path))
    ours, theirs = socket.socketpair()
    output, written = os.pipe()
    fcntl.fcntl(written, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
    lines = b"a line\n" * 100_000 + b"the last\n"
    assert os.write(written, lines) == len(lines)

    def left() -> int:
        buffer = fcntl.ioctl(output, termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", buffer)[0])

    child._listen(ours, output)
    try:
        for _ in range(3):
            await asyncio.sleep(0)
        assert left() > len(lines) // 2
        await until(lambda: not left())
        await until(lambda: child.tail and child.tail[-1] == "the last")
    finally:
        child._close()
        theirs.close()
        os.close(written)
