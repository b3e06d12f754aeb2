"""Children as real processes: started, told, killed, restarted, reaped; their parent killed under them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening.context import SCOPE_KEY
from deia_hardening.errors import SettingsError, StartError
from deia_hardening.runtime import runtime
from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import (
    ChildContext,
    ChildState,
    NotSent,
    ProcessSettings,
    UpstreamSettings,
    open_upstream,
)
from deia_hardening.upstream.process import ProcessUpstream, pause_before
from deia_hardening.upstream.rundir import process_start

APP = """
import json, os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    from deia_hardening.upstream.inner import is_inner, link, request_context
    if scope["path"] == "/die":
        os.kill(os.getpid(), 9)
    if scope["path"] == "/record":
        link().record({"what": "done"})
    body = json.dumps({
        "pid": os.getpid(), "env": sorted(os.environ), "client": scope["client"], "scheme": scope["scheme"],
        "root_path": scope["root_path"], "path": scope["path"], "context": request_context(scope),
        "headers": [[n.decode(), v.decode()] for n, v in scope["headers"]], "inner": is_inner(),
        "state": {"revision": link().state.revision, "mode": link().state.mode, "flags": link().state.flags},
    }).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/json"), (b"date", b"the app's own")]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "version_one.py").write_text(APP)
    return tmp_path / "home"


@pytest.fixture
def settings(tmp_path: Path) -> UpstreamSettings:
    process = ProcessSettings(
        folder=str(tmp_path / "code"), backoff_min=Seconds(0.05), stop_timeout=Seconds(3), start_timeout=Seconds(30)
    )
    return UpstreamSettings(process=process)


@pytest.fixture
def child(home: Path, settings: UpstreamSettings):
    """`async with child() as upstream`: started on the background loop, stopped at the end."""

    @contextlib.asynccontextmanager
    async def open_child(target: str = "process:version_one:app", **more: Any):
        upstream = open_upstream(target, settings=settings, home=home, **more)
        await upstream.start()
        try:
            yield upstream
        finally:
            await upstream.stop()

    return open_child


async def until(condition, seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.01)


def test_a_child_serves_and_sees_the_request_as_the_front_saw_it(run, child, call, monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")

    def context(scope):
        return ChildContext(id="r-1", actor={"id": "ada"}, revision=7, mode="DEGRADED", version="v2", flags={"x": True})

    async def main():
        async with child(context=context) as upstream:
            assert (await upstream.ready()).ok
            upstream.tell(ChildState(revision=9, mode="DEGRADED", flags={"scaling": False}))
            result = await call(
                upstream,
                path="/pre/x",
                headers=[(b"x-deia-context", b"forged"), (b"x-a", b"1")],
                root_path="/pre",
                scheme="https",
            )
            assert result.error is None
            said = result.messages[0]["headers"]
            assert [value for name, value in said if name in (b"date", b"server")] == [b"the app's own"]
            seen = json.loads(result.body)
            pid = upstream.pid
            assert seen["pid"] == pid
        return seen

    seen = run(main)
    assert process_start(seen["pid"]) == ""  # stopped with the block
    assert seen["inner"] is True
    assert seen["client"] == ["203.0.113.9", 4711]
    assert (seen["scheme"], seen["root_path"], seen["path"]) == ("https", "/pre", "/pre/x")
    assert seen["context"]["actor"] == {"id": "ada"}
    assert (seen["context"]["revision"], seen["context"]["mode"]) == (7, "DEGRADED")
    assert seen["state"] == {"revision": 9, "mode": "DEGRADED", "flags": {"scaling": False}}
    names = [name for name, _ in seen["headers"]]
    assert "x-deia-context" not in names
    assert dict(seen["headers"])["host"] == "front.example"
    assert "DATABASE_PASSWORD" not in seen["env"]
    assert not any("KEY" in name for name in seen["env"])


def test_the_cores_own_context_is_passed_on_by_default(child, call):
    from deia_hardening.context import RequestContext
    from deia_hardening.upstream.child_context import from_request

    class Revision:
        number = 3

    async def main():
        context = RequestContext(None, None, scope={"type": "http", "method": "GET"}, revision=Revision(), received=0.0)
        said = from_request({SCOPE_KEY: context})
        assert (said.id, said.revision, said.mode) == (context.id, 3, "FULL")
        async with child() as upstream:
            result = await call(upstream, **{SCOPE_KEY: context})
            assert json.loads(result.body)["context"]["id"] == context.id

    asyncio.run(main())


def test_nobody_else_gets_an_answer_from_a_child(child, call):
    """Unsigned, forged, and signed for another target: 403 each."""

    async def main():
        async with child() as upstream:
            path = upstream._found[0].sockaddr
            found = await runtime().blocking(os.stat, os.path.dirname(path))
            assert found.st_mode & 0o777 == 0o700
            plain = await call(open_upstream(f"unix:{path}"))
            assert plain.status == 403
            thief = open_upstream(f"unix:{path}")
            thief._key = b"x" * 32
            assert (await call(thief)).status == 403
            replay = open_upstream(f"unix:{path}")
            good = upstream.signed({"type": "http", "method": "GET", "headers": []}, b"/other")
            replay.signed = lambda scope, target: good
            assert (await call(replay, path="/")).status == 403
            assert (await call(replay, path="/other")).status == 200

    asyncio.run(main())


def test_a_child_that_dies_is_started_again_and_calls_meanwhile_are_judged(run, child, call):
    async def main():
        async with child() as upstream:
            reasons: list[str] = []
            upstream.on_death(reasons.append)
            first = upstream.pid
            died = await call(upstream, path="/die")
            assert died.error is not None
            assert died.error.outcome.value in ("failed_before_start", "not_sent")
            await until(lambda: reasons)
            while (result := await call(upstream)).error is not None:
                assert isinstance(result.error, NotSent), result.error
                await anyio.sleep(0.01)
            assert "SIGKILL" in reasons[0]
            assert upstream.pid not in (None, first)
            assert upstream.restarts == 1

    run(main)


def test_records_come_up_the_pipe(child, call):
    async def main():
        async with child() as upstream:
            records: list[dict[str, Any]] = []
            upstream.on_record(records.append)
            assert (await call(upstream, path="/record")).status == 200
            await until(lambda: records)
            assert records == [{"what": "done"}]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ZeroDivisionError('in the module')", "ZeroDivisionError: in the module"),
        ("app = 1 + 1", "app is a int, not an ASGI app"),
        ("import sys; sys.exit(3)", "SystemExit"),
        (
            "async def app(scope, receive, send):\n"
            "    await receive()\n"
            "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n",
            "no database",
        ),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(home, settings, tmp_path, source, said):
    (tmp_path / "code" / "broken.py").write_text(source)

    async def main():
        upstream = open_upstream("process:broken:app", settings=settings, home=home)
        with pytest.raises(StartError, match=said):
            await upstream.start()
            await upstream.ready()
            raise StartError("x", "exit status")  # `app = 2` serves errors; uvicorn takes it
        await upstream.stop()

    asyncio.run(main())
    assert list((home / "run").glob("child-*.json")) == []


def test_an_interpreter_that_is_not_there_is_a_start_error(home):
    settings = UpstreamSettings(process=ProcessSettings(interpreter="/nonexistent/python"))

    async def main():
        upstream = open_upstream("process:version_one:app", settings=settings, home=home)
        with pytest.raises(StartError, match="/nonexistent/python"):
            await upstream.start()

    asyncio.run(main())


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from deia_hardening.upstream import *
home, code = sys.argv[1:3]
async def main():
    settings = UpstreamSettings(process=ProcessSettings(folder=code))
    upstream = open_upstream("process:version_one:app", settings=settings, home=home)
    await upstream.start()
    print(upstream.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def supervisor(home: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(home), str(tmp_path / "code")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    return process, int(line)


@pytest.mark.fault
def test_a_killed_supervisor_takes_its_child_with_it_and_a_successor_serves(home, settings, tmp_path, call):
    process, pid = supervisor(home, tmp_path)

    async def main():
        follower = open_upstream("process:version_one:app", settings=settings, home=home)
        await follower.start()  # another process supervises: this one only calls
        try:
            assert follower.pid is None
            assert json.loads((await call(follower)).body)["pid"] == pid
            process.kill()
            await runtime().blocking(process.wait)
            with anyio.fail_after(20):
                while await runtime().blocking(process_start, pid):
                    await anyio.sleep(0.01)
            await until(lambda: follower.pid is not None)
            result = await call(follower)
            assert json.loads(result.body)["pid"] == follower.pid != pid
        finally:
            await follower.stop()

    try:
        asyncio.run(main())
    finally:
        process.kill()
        process.wait()


def test_pauses_grow_to_their_bound():
    settings = ProcessSettings(backoff_min=Seconds(0.2), backoff_max=Seconds(3))
    assert [pause_before(n, settings) for n in (1, 2, 3, 4, 5, 500)] == [0.2, 0.4, 0.8, 1.6, 3, 3]


def test_a_process_needs_a_home():
    with pytest.raises(SettingsError, match="home"):
        open_upstream("process:a:b")


def test_before_its_start_a_child_is_not_sent_anything(home, call):
    async def main():
        upstream = open_upstream("process:version_one:app", home=home)
        assert isinstance(upstream, ProcessUpstream)
        result = await call(upstream)
        assert isinstance(result.error, NotSent)
        assert not (await upstream.ready()).ok

    asyncio.run(main())


def test_the_background_loop_owns_children(home, settings):
    """Started from a serving loop that ends: the child lives on, until it is stopped from another."""
    upstream = open_upstream("process:version_one:app", settings=settings, home=home)
    asyncio.run(upstream.start())
    pid = upstream.pid
    assert process_start(pid)
    asyncio.run(upstream.stop())
    assert process_start(pid) == ""
