"""A child that is kept goes on under the worker that supervises next, with its memory, its word and its records."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from deia_hardening.cli.keeper import Keeper
from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import ChildState, ProcessSettings, UpstreamSettings, keeping, open_upstream, supervision
from deia_hardening.upstream.inner import Link
from deia_hardening.upstream.process import ProcessUpstream
from deia_hardening.upstream.rundir import process_start

pytestmark = [
    pytest.mark.blocking,  # the tests look at processes
    pytest.mark.fault,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only where a process has a descriptor"),
]

APP = """
import asyncio, json, os
from deia_hardening.upstream.inner import link

used = 0

async def app(scope, receive, send):
    global used
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await asyncio.sleep(float(os.environ.get("SLOWLY", 0)))
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    used += 1
    link().record({"what": scope["path"]})
    state = link().state
    body = json.dumps({"pid": os.getpid(), "used": used, "revision": state.revision, "mode": state.mode}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

Opened = Callable[..., ProcessUpstream]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "version_one.py").write_text(APP)

    def open_one(name: str = "one", **variables: str) -> ProcessUpstream:
        process = ProcessSettings(folder=str(tmp_path / "code"), stop_timeout=Seconds(3), variables=variables)
        found = open_upstream(
            "process:version_one:app", settings=UpstreamSettings(process=process), home=tmp_path / "home", name=name
        )
        assert isinstance(found, ProcessUpstream)
        return found

    return open_one


@asynccontextmanager
async def keeper(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[keeping.Line]:
    """What the supervisor of `run` is to its workers, here in this process."""
    found = Keeper()
    line = keeping.Line(found.line())
    monkeypatch.setattr(keeping, "_line", line)
    try:
        yield line
    finally:
        await found.end(10.0)
        line._end.close()


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.01)


def test_it_goes_on_with_its_memory_its_word_and_its_records(
    opened: Opened, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def seen(upstream: ProcessUpstream, path: str) -> dict[str, Any]:
        result = await call(upstream, path=path)
        assert result.error is None
        return dict(json.loads(result.body))

    async def main() -> None:
        async with keeper(monkeypatch) as line:
            first = opened()
            await first.start()
            first.tell(ChildState(revision=7, mode="DEGRADED"))
            pid = (await seen(first, "/a"))["pid"]
            await first.leave()
            (kept,) = await asyncio.to_thread(line.take, tmp_path / "home") or ()
            assert kept.pid == pid and process_start(pid)
            os.write(kept.control, b'{"t": "state", "revi')  # a word that was cut when its parent was killed
            kept.close()
            second = opened()
            records: list[dict[str, Any]] = []
            second.on_record(records.append)
            await second.start()
            assert second.pid == pid and second.restarts == 0
            again = await seen(second, "/b")
            assert (again["pid"], again["used"], again["revision"], again["mode"]) == (pid, 2, 7, "DEGRADED")
            second.tell(ChildState(revision=8))
            while (await seen(second, "/c"))["revision"] != 8:
                await asyncio.sleep(0.01)
            await until(lambda: {"what": "/b"} in records)
            os.kill(pid, 9)  # it is watched, although it is no child of who adopts it in a real service
            await until(lambda: second.pid not in (None, pid))
            assert second.restarts == 1
            await second.stop()
            assert await asyncio.to_thread(line.take, tmp_path / "home") == []

    asyncio.run(main())


def test_what_was_started_for_another_order_is_replaced(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with keeper(monkeypatch):
            first = opened(SPEED="1")
            await first.start()
            pid = first.pid
            await first.leave()
            second = opened(SPEED="2")
            await second.start()
            assert second.pid != pid
            assert pid is not None and process_start(pid) == ""
            await second.stop()

    asyncio.run(main())


def test_what_is_kept_and_not_written_down_is_ended(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with keeper(monkeypatch):
            first = opened()
            await first.start()
            pid = first.pid
            await first.leave()
            (record,) = (tmp_path / "home" / "run").glob("child-*.json")
            record.unlink()
            second = opened()
            await second.start()
            assert pid is not None and second.pid != pid
            await until(lambda: process_start(pid) == "")
            await second.stop()

    asyncio.run(main())


def test_a_keeper_that_is_busy_is_asked_again_and_nothing_is_ended_meanwhile(
    opened: Opened, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with keeper(monkeypatch) as line:
            first = opened()
            await first.start()
            pid = first.pid
            await first.leave()
            answers = [None, None]
            take = line.take
            monkeypatch.setattr(line, "take", lambda home: answers.pop() if answers else take(home))
            second = opened()
            await second.start()  # it follows the record
            assert (await call(second)).error is None
            await until(lambda: second.pid == pid)
            assert answers == []
            await second.stop()

    asyncio.run(main())


def test_a_child_that_is_told_to_end_is_nobodys_to_go_on_with(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with keeper(monkeypatch):
            first = opened(SLOWLY="1")
            await first.start()
            pid = first.pid
            records = tmp_path / "home" / "run"
            assert pid is not None and [*records.glob("child-*.json")]
            stopping = asyncio.create_task(first.stop())
            await until(lambda: not [*records.glob("child-*.json")])
            assert process_start(pid)  # here its supervisor may be killed
            await stopping

    asyncio.run(main())


def test_what_nobody_goes_on_with_is_ended(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_UNCLAIMED", 0.05)

    async def main() -> None:
        async with keeper(monkeypatch):
            first = opened()
            await first.start()
            pid = first.pid
            await first.leave()
            assert pid is not None and process_start(pid)
            other = opened("other")
            await other.start()
            await until(lambda: process_start(pid) == "")
            assert other.pid is not None
            await other.stop()

    asyncio.run(main())


@pytest.mark.parametrize("why", ["the service ends", "the keeper is gone"])
def test_it_ends_where_nobody_can_go_on_with_it(opened: Opened, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with keeper(monkeypatch) as line:
            first = opened()
            await first.start()
            pid = first.pid
            assert pid is not None
            if why == "the service ends":
                line.ending = True
                await first.leave()
                assert process_start(pid) == ""
                return
            await first.leave()
            assert process_start(pid)
        assert process_start(pid) == ""  # its pipe was closed

    asyncio.run(main())


def test_who_waits_for_a_records_fate_learns_that_nobody_knows_it() -> None:
    callbacks: dict[str, Callable[[dict[str, Any]], None]] = {}
    module = SimpleNamespace(
        subscribe=lambda kind, callback: callbacks.update({kind: callback}), send_up=lambda message: True
    )
    link = Link(module)
    told: list[str] = []
    assert link.record({"what": "paid"}, told.append)
    callbacks["parent"]({"t": "parent"})
    assert len(told) == 1 and "not known" in told[0]
    callbacks["kept"]({"t": "kept", "n": [1], "why": ""})
    assert len(told) == 1
