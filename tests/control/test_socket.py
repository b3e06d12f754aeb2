"""Who owns the socket: one worker, until it dies; and where it is when the home's path is long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control.client import Client, NotRunning, Step
from deia_hardening.control.paths import find_socket, make_folder, socket_path, somebody_is_here
from deia_hardening.plugin import Problem
from deia_hardening.socketpath import LONGEST

SERVICE = """
    import asyncio, sys
    from deia_hardening.testing import running

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            for message in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{message}.complete"})

    async def main():
        settings = {"home": sys.argv[1], "control": {"takeover_interval": sys.argv[2], "bootstrap_token": False}}
        async with running(app, settings):
            print("up", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


def start(home: Path, takeover: str = "20ms") -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVICE), str(home), takeover], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    return child


def pid_of(client: Client) -> int:
    import time

    for _ in range(2000):
        try:
            pid = client.call("service.status", changes=False)["pid"]
        except NotRunning:
            time.sleep(0.01)
            continue
        return int(pid)
    raise AssertionError("nobody answers")


@pytest.mark.fault
def test_a_call_waits_while_the_socket_changes_hands_and_not_where_nobody_is(tmp_path: Path) -> None:
    home = tmp_path / ".deia"
    client = Client(home)
    one = start(home, "1s")
    try:
        assert pid_of(client) == one.pid
        two = start(home, "1s")
        try:
            os.kill(one.pid, signal.SIGKILL)
            one.wait()
            assert client.call("service.status", changes=False)["pid"] == two.pid  # one call, with nobody there yet
        finally:
            two.kill()
            two.communicate()
        assert not somebody_is_here(home)
        with pytest.raises(NotRunning, match="start it"):
            client.call("service.status", changes=False)
    finally:
        one.kill()
        one.communicate()


@pytest.mark.fault
def test_when_the_owner_is_killed_another_worker_answers(tmp_path: Path) -> None:
    home = tmp_path / ".deia"
    client = Client(home)
    one = start(home)
    try:
        assert pid_of(client) == one.pid
        two = start(home)
        try:
            assert pid_of(client) == one.pid
            os.kill(one.pid, signal.SIGKILL)
            one.wait()
            assert pid_of(client) == two.pid
        finally:
            two.kill()
            two.communicate()
    finally:
        one.kill()
        one.communicate()
    with pytest.raises(NotRunning, match="start it"):
        client.call("service.status", changes=False)


async def test_the_client_calls_follows_and_is_refused(service: Any, probe: Any) -> None:
    client = Client(service.home)

    def use() -> None:
        assert client.get("/readyz") == {"status": "ready"}
        assert any(one["name"] == "probe.read" for one in client.operations())
        found = client.call("probe.read", {"limit": 3, "colours": ["red"], "exact": True}, changes=False)
        assert found["limit"] == 3 and found["colours"] == ["red"]
        done = client.call("probe.write", {"value": "é"}, reason="wäre gut", if_revision=7)
        assert done["reason"] == "wäre gut" and probe.done == ["é"]
        steps = list(client.follow("probe.long", changes=False))
        assert steps[0] == Step("step 0", 0.0) and steps[-1]["revision"] == 9
        with pytest.raises(Problem) as refused:
            client.call("probe.write", {})
        assert refused.value.status == 422 and refused.value.extensions["problems"]
        with pytest.raises(Problem):
            list(client.follow("probe.boom", changes=False))
        assert client.call("probe.deep-local", {"value": "l"})["revision"] == 8

    await asyncio.to_thread(use)


async def test_two_apps_of_one_home_share_the_socket(serving: Any, tmp_path: Path) -> None:
    async with (
        serving(tmp_path / ".deia", bootstrap_token=False) as one,
        serving(tmp_path / ".deia", bootstrap_token=False) as two,
    ):
        assert one.plugin._home is two.plugin._home
        assert (await one.ask("GET", "/deia/livez", headers={"deia-app": "fresh-2"})).status == 200
        missing = await one.ask("GET", "/deia/livez", headers={"deia-app": "nobody"})
        assert missing.status == 404 and "fresh" in missing.body.decode()


async def test_a_stop_leaves_no_socket(serving: Any, tmp_path: Path) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False) as service:
        path = Path(service.socket)
        assert path.exists()
    assert not path.exists()


async def test_without_a_lifespan_nothing_is_bound_and_the_probes_answer(tmp_path: Path) -> None:
    from deia_hardening import harden
    from deia_hardening.testing.asgi import request

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    hardened = await asyncio.to_thread(harden, app, {"home": str(tmp_path / ".deia")})
    assert (await request(hardened, "GET", "/deia/readyz")).status == 200
    assert not list((tmp_path / ".deia" / "run").iterdir())


async def test_a_long_home_keeps_its_socket_in_a_private_short_folder(serving: Any, tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120) / ".deia"
    path = socket_path(home)
    assert len(os.fsencode(path)) <= LONGEST and path.parent.name.startswith(f"deia-{os.getuid()}-")
    async with serving(home, bootstrap_token=False) as service:
        assert service.socket == str(path)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert await asyncio.to_thread(find_socket, home) == path
        client = Client(home)
        assert (await asyncio.to_thread(client.get, "/livez")) == {"status": "alive"}
    path.parent.rmdir()


def test_a_short_folder_that_somebody_else_planted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = tmp_path / ("x" * 120)
    path = socket_path(home)
    path.parent.symlink_to(tmp_path)
    with pytest.raises(OSError):
        make_folder(path, home)


def test_a_socket_answered_by_somebody_else_is_not_used(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    home = tmp_path / "h"
    (home / "run").mkdir(parents=True)
    for folder in (*tmp_path.parents, tmp_path, home, home / "run"):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o777)
    program = f"""
        import os, socket
        os.setuid(65534)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind({str(socket_path(home))!r})
        listening.listen()
        print("up", flush=True)
        listening.accept()
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        monkey = os.geteuid
        assert monkey() == 0
        with pytest.raises(NotRunning, match="65534"):
            Client(home).get("/livez")
    finally:
        child.kill()
        child.communicate()


async def test_a_worker_that_is_not_the_owner_forwards_with_its_caller(
    serving: Any, tmp_path: Path, probe: Any
) -> None:
    home = tmp_path / ".deia"
    owner = await asyncio.to_thread(start, home)
    try:
        client = Client(home)
        await asyncio.to_thread(pid_of, client)
        made = await asyncio.to_thread(client.call, "token.create", {"name": "ci", "role": "admin"})
        from deia_hardening import harden
        from deia_hardening.testing.asgi import ASGIRecorder, http_scope, request

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError

        worker = await asyncio.to_thread(harden, app, {"home": str(home), "control": {"on_app": "full"}})
        headers = {"authorization": f"Bearer {made['token']}"}
        answer = await request(worker, "GET", "/deia/service/status", headers=headers)
        assert answer.status == 200 and f'"pid":{owner.pid}'.encode() in answer.body.replace(b" ", b"")
        listed = await request(worker, "GET", "/deia/token/list", headers=headers)
        assert listed.status == 200
        scope = http_scope("GET", "/deia/service/status", headers={**headers, "accept": "text/event-stream"})
        stream = await ASGIRecorder(worker, scope, {"type": "http.request", "body": b""}, hang=True).run()
        assert stream.headers["content-type"] == "text/event-stream"
        assert b"event: result" in stream.body and f'"pid":{owner.pid}'.encode() in stream.body
        assert (await request(worker, "GET", "/deia/service/status")).status == 401
    finally:
        owner.kill()
        owner.communicate()
