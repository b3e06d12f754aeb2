"""Two versions of one small service, and a hardened app that can be migrated between them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening import harden
from deia_hardening.control.client import Client
from deia_hardening.runtime import runtime
from deia_hardening.testing import Running, running
from deia_hardening.types import ASGIApp, Receive, Scope, Send

Behaviour = Callable[[Scope, Receive, Send], Awaitable[None]]


class Service:
    """A version: answers with its name, counts, and misbehaves when told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.lifespans: list[str] = []
        self.behaviour: Behaviour | None = None
        self.startup_error = ""
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.requests += 1
        if self.behaviour is not None:
            await self.behaviour(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain"), *self.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.name.encode()})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self.startup_error:
                    await send({"type": "lifespan.startup.failed", "message": self.startup_error})
                    return
                self.lifespans.append("up")
                await send({"type": "lifespan.startup.complete"})
            else:
                self.lifespans.append("down")
                await send({"type": "lifespan.shutdown.complete"})
                return


class Pair:
    """The old and the new version, and how to run them hardened."""

    def __init__(self, folder: Path) -> None:
        self.old = Service("old")
        self.new = Service("new")
        self.folder = folder
        module = types.ModuleType("deia_test_versions")
        module.new = self.new  # type: ignore[attr-defined]
        sys.modules["deia_test_versions"] = module

    def settings(self, **migration: Any) -> dict[str, Any]:
        section = {
            "versions": {"v2": {"target": "inproc:deia_test_versions:new"}},
            "key": ["header:x-user"],
            "tick": "10ms",
            **migration,
        }
        return {"home": str(self.folder / ".deia"), "migration": section}

    @asynccontextmanager
    async def up(self, app: ASGIApp | None = None, **migration: Any) -> AsyncIterator[Running]:
        # Reading the settings blocks, so it is done where a service does it: off the loop.
        hardened = await runtime().blocking(harden, app or self.old, self.settings(**migration))
        async with running(hardened, {}) as live:
            yield live


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    yield Pair(tmp_path)
    sys.modules.pop("deia_test_versions", None)


async def until(condition: Callable[[], Any], what: str = "", turns: int = 12_000) -> None:
    """Let the loops turn until something is true; fails by turns, not by the clock."""
    for _ in range(turns):
        if condition():
            return
        await anyio.sleep(0.005)
    raise AssertionError(f"it never came: {what or condition}")


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Awaitable[None]]:
    return until


FRONT = """
import asyncio, os
from deia_hardening import harden
from deia_hardening.control.client import Client

NAME = "one"
SESSIONS = {}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{NAME} {os.getpid()}"})
        return
    body = f"{NAME} {os.getpid()}".encode()
    if scope["path"] == "/session":
        headers = dict(scope["headers"])
        session = headers.get(b"mcp-session-id") or os.urandom(8).hex().encode()
        if b"mcp-session-id" in headers and session not in SESSIONS:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"no such session"})
            return
        SESSIONS[session] = SESSIONS.get(session, 0) + 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"mcp-session-id", session)]})
        await send({"type": "http.response.body", "body": f"{SESSIONS[session]} {os.getpid()}".encode()})
        return
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.05)
    if scope["path"] == "/slow":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"end"})
        return
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

app = harden(app, {"home": os.environ["FRONT_HOME"], "migration": {
    "environment": ["FRONT_*"],
    "versions": {"beside": {"target": "process:main:app", "folder": os.getcwd()}},
    "plan": {"steps": [], "bake": 0, "holdback": "0%", "promote": "timed"}}})
"""


class Front:
    """`deia-hardening run` as a child, on a folder of its own."""

    MAIN = FRONT

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.home = folder / ".deia"
        (folder / "main.py").write_text(FRONT)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEIA", "COV"))}
        environment |= {"FRONT_HOME": str(self.home), "DEIA__REQUESTS__LAME_DUCK": "0s"}
        command = [sys.executable, "-m", "deia_hardening.cli", "run", "main:app", "--port", str(self.port), *options]
        self.log = folder / "front.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "info"], cwd=folder, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def get(self, path: str = "/") -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()
        finally:
            connection.close()

    def session(self, number: str = "") -> tuple[str, int, int]:
        """Begin a session or go on with one: its id, how often it was used, the process that holds it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", "/session", headers={"mcp-session-id": number} if number else {})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body)
            count, pid = body.split()
            return str(answer.headers["mcp-session-id"]), int(count), int(pid)
        finally:
            connection.close()

    def migrate(self, to: str) -> None:
        client = Client(self.home, timeout=30)
        self.until(lambda: self.control(client))
        client.call("migration.start", {"version": to}, changes=True, reason="test")
        self.until(lambda: client.call("migration.status", {}, changes=False)["phase"] == "done")

    def up(self) -> Front:
        self.until(lambda: self._answers())
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return bool(self.get())
        return False

    def until(self, condition: Callable[[], Any]) -> None:
        for _ in range(1_500):
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"it never came:\n{self.log.read_text()}")

    def workers(self, number: int = 30) -> set[int]:
        """The worker processes that answer new connections."""
        return {int(self.get().split()[1]) for _ in range(number)}

    def restart(self) -> list[Any]:
        client = Client(self.home, timeout=30)
        self.until(lambda: self.control(client))
        return list(client.follow("service.restart", {}, changes=True, reason="test"))

    @staticmethod
    def control(client: Client) -> bool:
        with contextlib.suppress(Exception):
            return bool(client.call("service.status", {}, changes=False))
        return False

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    made: list[Front] = []

    def start(*options: str) -> Front:
        made.append(Front(tmp_path, *options))
        return made[-1].up()

    yield start
    for one in made:
        one.end()
