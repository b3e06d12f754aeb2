"""Versions as processes: code copied and run beside, promoted, served after a restart; what can't be deployed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.plugin import Actor, Call, Problem, Progress
from deia_hardening.runtime import runtime
from deia_hardening.settings import Ratio, Seconds
from deia_hardening.surface import Surface
from deia_hardening.testing import ASGIRecorder
from deia_hardening.testing.asgi import http_scope
from deia_migration import Guards, MigrationManager, Plan, Probe, Step
from deia_migration.code import CodeError, copy_code, locate, prune
from deia_migration.operations import DeployInput

APP = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = f"NAME {os.getpid()} {scope['client'][0]} {scope['scheme']} {dict(scope['headers'])[b'host'].decode()}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})
"""

FAST = Plan(
    steps=(Step(weight=Ratio("50%"), gate="manual"),),
    promote="manual",
    probes=(Probe(path="/health"),),
    guards=Guards(every=Seconds("50ms")),
)


def project(folder: Path, name: str) -> Path:
    (folder / "inner" / "__pycache__").mkdir(parents=True)
    (folder / "main.py").write_text(APP.replace("NAME", name))
    (folder / "inner" / "data.txt").write_text(name)
    (folder / "inner" / "__pycache__" / "x.pyc").write_bytes(b"no code")
    return folder


pytestmark = pytest.mark.blocking


async def ask(live: Any, method: str, headers: Any = ()) -> ASGIRecorder:
    """One request of a client who stays for the answer, however long a process takes for it."""
    asked = {"type": "http.request", "body": b"", "more_body": False}
    return await ASGIRecorder(live.app, http_scope(method, "/", headers=headers), asked, hang=True).run()


async def test_a_folder_is_deployed_served_promoted_and_served_after_a_restart(
    pair: Any, until: Any, tmp_path: Path
) -> None:
    source = project(tmp_path / "project", "second")
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        begun = await manager.deploy(str(source), plan=FAST, reason="a new build")
        assert begun.target == "process:main:app"
        await until(lambda: manager.status().weight == 0.5, "the first step")
        (source / "main.py").write_text("raise SystemExit('the copy is what runs')")
        found = set()
        for user in range(40):
            answer = await ask(live, "POST", headers=[(b"x-user", str(user).encode()), (b"host", b"shop.example")])
            assert answer.status == 200
            words = answer.body.decode().split()
            found.add(words[0])
            if words[0] == "second":
                assert int(words[1]) != os.getpid()
                assert words[2:] == ["127.0.0.1", "http", "shop.example"]
        assert found == {"old", "second"}
        await manager.promote(full=True)
        await until(lambda: manager.status().phase == "done")
        assert (await ask(live, "POST", headers=[(b"host", b"x")])).body.startswith(b"second")
    async with pair.up() as live:
        assert (await ask(live, "POST", headers=[(b"host", b"x")])).body.startswith(b"second")
        manager = live.service(MigrationManager)
        await manager.start("app", plan=FAST, reason="back to what is on the disk")
        await until(lambda: manager.status().weight == 0.5)
        await manager.promote(full=True)
        await until(lambda: manager.status().phase == "done")
        assert (await ask(live, "POST")).body == b"old"


async def test_a_child_that_is_killed_costs_no_request_and_ends_the_rollout(
    pair: Any, until: Any, tmp_path: Path
) -> None:
    source = project(tmp_path / "project", "second")
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(str(source), plan=FAST)
        await until(lambda: manager.status().weight == 0.5)
        child = 0
        for user in range(60):
            answer = await ask(live, "POST", headers=[(b"x-user", str(user).encode()), (b"host", b"x")])
            if answer.body.startswith(b"second"):
                child = int(answer.body.split()[1])
                break
        os.kill(child, signal.SIGKILL)
        for user in range(60):
            answer = await ask(live, "GET", headers=[(b"x-user", str(user).encode()), (b"host", b"x")])
            assert answer.status == 200
        await until(lambda: manager.status().phase == "rolled-back", "the guard")
        assert "ended by itself" in manager.status().reason


async def test_code_that_does_not_start_leaves_the_old_version_alone(pair: Any, until: Any, tmp_path: Path) -> None:
    source = project(tmp_path / "project", "second")
    (source / "main.py").write_text("raise RuntimeError('no such table')")
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(str(source), plan=FAST)
        assert (await ask(live, "POST")).body == b"old"
        await until(lambda: manager.status().phase == "rolled-back")
        assert "could not start" in manager.status().reason
        assert "no such table" in manager.status().reason


async def test_deploy_as_an_operation_waits_and_fails_for_ci(pair: Any, until: Any, tmp_path: Path) -> None:
    source = project(tmp_path / "project", "second")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "steps:\n  - weight: 50%\n    gate: manual\npromote: manual\nprobes:\n  - path: /\n    status: 204\n"
    )
    async with pair.up() as live:
        surface: Surface = live.service(Surface)
        assert surface.operations()["migration.deploy"].local
        value = DeployInput(source=str(source), plan=str(plan), wait=True)
        seen: list[Any] = []

        async def invoke() -> None:
            async for step in surface.invoke(
                "migration.deploy", value, Call(Actor("user", "ci"), "build 7", local=True)
            ):
                seen.append(step)

        with pytest.raises(Problem) as refused:
            await runtime().run(invoke)
        assert "answered 200, not 204" in refused.value.detail
        assert all(isinstance(step, Progress) for step in seen)
        plan.write_text("steps:\n  - weight: 150%\n")
        with pytest.raises(Problem) as refused:
            await runtime().run(invoke)
        assert refused.value.status == 422
        assert "plan.yaml:2:" in refused.value.detail


async def test_the_teams_own_pytest_is_run_against_the_version(
    pair: Any, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they are many here, and slow to load
    source = project(tmp_path / "project", "second")
    tests = tmp_path / "canary"
    tests.mkdir()
    (tests / "test_it.py").write_text(
        "import os, socket\n"
        "def test_it():\n"
        "    url = os.environ['DEIA_VERSION_URL']\n"
        "    assert url.startswith('unix:')\n"
        "    with socket.socket(socket.AF_UNIX) as s:\n"
        "        s.connect(url[5:])\n"
        "        s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')\n"
        "        assert s.makefile('rb').readline().split()[1] == b'418', 'as expected'\n"
    )
    plan = Plan(steps=FAST.steps, promote="manual", pytest=str(tests))
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(str(source), plan=plan)
        await until(lambda: manager.status().phase == "rolled-back")
        assert "pytest" in manager.status().reason
        assert "as expected" in manager.status().reason


@pytest.mark.parametrize("kind", ["process", "inproc"])
async def test_the_teams_own_pytest_reaches_the_version_as_its_front_does(
    pair: Any, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    source = project(tmp_path / "project", "second")
    tests = tmp_path / "canary"
    tests.mkdir()
    (tests / "test_it.py").write_text(
        "import http.client, os, socket\n"
        "def test_it():\n"
        "    connection = http.client.HTTPConnection('shop.example')\n"
        "    connection.sock = socket.socket(socket.AF_UNIX)\n"
        "    connection.sock.connect(os.environ['DEIA_VERSION_URL'].removeprefix('unix:'))\n"
        "    connection.request('POST', '/', body=b'{}')\n"
        "    answer = connection.getresponse()\n"
        "    assert answer.status == 200\n"
        f"    assert answer.read().startswith(b'{'second' if kind == 'process' else 'new'}')\n"
    )
    plan = Plan(steps=FAST.steps, promote="manual", pytest=str(tests))
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        if kind == "process":
            await manager.deploy(str(source), plan=plan)
        else:
            await manager.start("v2", plan=plan)
        await until(lambda: manager.status().weight == 0.5 or manager.status().latched)
        assert manager.status().weight == 0.5, manager.status().reason


async def test_the_terminal_shows_both_versions_side_by_side(pair: Any, until: Any) -> None:
    from rich.console import Console

    from deia_hardening.cli.sidebyside import side_by_side
    from deia_hardening.control.codec import plain

    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=FAST)
        await until(lambda: manager.status().weight == 0.5, "the first step")
        for user in range(20):
            await ask(live, "POST", headers=[(b"x-user", str(user).encode())])
        await until(lambda: sum(manager.status().requests[name] for name in ("old", "new")) == 20)
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(side_by_side(plain(manager.status())))
        shown = console.export_text()
        for word in (
            "old: app",
            "new: v2",
            "50%",
            "requests",
            "p99",
            " ms",
            "ramping, step 1 of 1",
            "rolls back at 100",
        ):
            assert word in shown, shown
        counts = manager.status().requests
        assert counts["new_p99"] > 0
        assert f" {counts['old']} " in shown
        await manager.rollback(reason="users \x1b[31mcomplain")
        console.print(side_by_side(plain(manager.status())))
        assert "\x1b" not in console.export_text()


def test_equal_code_has_one_digest_and_one_copy(tmp_path: Path) -> None:
    limits = {"most_files": 100, "most_bytes": 10_000}
    one, two = project(tmp_path / "one", "a"), project(tmp_path / "two", "a")
    versions = tmp_path / "versions"
    first = copy_code(one, versions, **limits)
    assert copy_code(two, versions, **limits) == first
    assert [path.name for path in versions.iterdir()] == [first]
    assert not (versions / first / "inner" / "__pycache__").exists()
    (versions / first / "main.py").write_text("damaged")
    assert copy_code(one, versions, **limits) == first
    assert (versions / first / "main.py").read_text() == (one / "main.py").read_text()
    (two / "main.py").write_text("other")
    second = copy_code(two, versions, **limits)
    os.utime(versions / first, (1, 1))
    assert prune(versions, 1, frozenset({first})) == [second]


def test_what_can_not_be_deployed_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = project(tmp_path / "project", "a")
    versions = tmp_path / "versions"
    with pytest.raises(CodeError, match="more than"):
        copy_code(source, versions, most_files=1, most_bytes=10_000)
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(CodeError, match="leads out"):
        copy_code(source, versions, most_files=100, most_bytes=10_000)
    with pytest.raises(CodeError, match="no folder"):
        copy_code(tmp_path / "nothing", versions, most_files=100, most_bytes=10_000)
    assert not versions.exists() or not list(versions.iterdir())
    assert locate("main:app", "", source) == (source, "main:app")
    with pytest.raises(CodeError, match="no module"):
        locate("nowhere_at_all:app", "", source)


async def test_a_version_elsewhere_sees_the_host_that_the_client_asked_for(pair: Any, until: Any) -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nelsewhere")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with pair.up(versions={"v2": {"target": target}}) as live:
            manager: MigrationManager = live.service(MigrationManager)
            await manager.start("v2", plan=Plan(steps=(Step(weight=Ratio("100%"), gate="manual"),)))
            await until(lambda: manager.status().weight == 1)
            answer = await ask(live, "POST", headers=[(b"host", b"shop.example:8443")])
            assert answer.body == b"elsewhere"
    assert b"\r\nhost: shop.example:8443\r\n" in seen[-1]
