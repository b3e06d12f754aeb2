"""No session breaks while the weight changes a hundred times: the MCP SDK's client, gradio_client, python-socketio.

Real clients against `deia-hardening run`, the new version a process beside it; each session's state lives in the memory
of the version that it began on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control.client import Client

pytestmark = [pytest.mark.blocking, pytest.mark.filterwarnings("default")]

STEPS = 100 if os.environ.get("DEIA_LONG") else 10
"""Weight changes; `DEIA_LONG=1` makes a hundred of them."""

FRONT = """
from deia_hardening import harden
from service_old import app
app = harden(app, {"home": HOME, "migration": {
    "versions": {"v2": {"target": "process:service_new:app", "folder": FOLDER}}, "key": [], "tick": "20ms", **MORE}})
"""

MCP = """
from mcp.server import MCPServer
server = MCPServer("demo")

@server.tool()
def who() -> str:
    return NAME

app = server.streamable_http_app()
"""

SOCKETIO = """
import socketio
server = socketio.AsyncServer(async_mode="asgi")

@server.event
async def connect(sid, environ, auth):
    await server.save_session(sid, {"count": 0})

@server.event
async def count(sid, data):
    session = await server.get_session(sid)
    session["count"] += 1
    await server.save_session(sid, session)
    return f"{NAME} {session['count']}"

app = socketio.ASGIApp(server)
"""

GRADIO = """
import gradio
from fastapi import FastAPI

with gradio.Blocks() as blocks:
    box, out, counted = gradio.Textbox(), gradio.Textbox(), gradio.State(0)

    def count(text, before):
        return f"{NAME} {before + 1}", before + 1

    box.submit(count, [box, counted], [out, counted], api_name="count")
app = gradio.mount_gradio_app(FastAPI(), blocks, path="/ui")
"""


class Service:
    """The front with its home, and the rollout that is driven from outside."""

    def __init__(self, folder: Path, source: str, **more: Any) -> None:
        for name in ("old", "new"):
            (folder / f"service_{name}.py").write_text(f"NAME = {name!r}\n{source}")
        front = FRONT.replace("HOME", repr(str(folder / ".deia"))).replace("FOLDER", repr(str(folder)))
        (folder / "front.py").write_text(front.replace("MORE", repr(more)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "front.log"
        self.client = Client(folder / ".deia", timeout=30)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEIA", "COV"))}
        environment |= {"GRADIO_ANALYTICS_ENABLED": "False"}
        command = [sys.executable, "-m", "deia_hardening.cli", "run", "front:app", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "warning"], cwd=folder, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def ask(self, verb: str, **value: Any) -> Any:
        changes = verb != "status"
        return await asyncio.to_thread(self.client.call, f"migration.{verb}", value, changes=changes, reason="test")

    async def until(self, condition: Callable[[Any], bool]) -> None:
        for _ in range(1_500):
            with contextlib.suppress(Exception):
                if condition(await self.ask("status")):
                    return
            assert self.process.poll() is None, self.log.read_text()
            await asyncio.sleep(0.02)
        raise AssertionError(self.log.read_text())

    async def up(self) -> None:
        """Until it answers on its port and on its control socket."""
        for _ in range(1_500):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        await self.until(bool)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(source: str, **more: Any) -> Service:
        weights = [number / STEPS for number in range(1, STEPS)]
        steps = [{"weight": f"{100 * weight:g}%", "gate": "manual"} for weight in weights]
        plan = {"steps": steps, "promote": "manual", "bake": 0, "holdback": "0%", "judge": {"slow": "0%"}}
        made.append(Service(tmp_path, source, plan=plan, **more))
        return made[-1]

    yield start
    for one in made:
        one.end()


Ask = Callable[[], Awaitable[str]]


async def hundred_changes(service: Service, begin: Callable[[], Awaitable[Ask]]) -> None:
    """Sessions begun before and during the rollout are asked after each change of the weight, and after a rollback."""
    sessions: list[Ask] = []
    first: list[str] = []

    async def one_more() -> None:
        ask = await begin()
        sessions.append(ask)
        first.append((await ask()).split()[0])

    async def all_answer(turn: int) -> None:
        answers = await asyncio.gather(*(ask() for ask in sessions))
        assert [answer.split()[0] for answer in answers] == first, turn

    for _ in range(4):
        await one_more()
    assert set(first) == {"old"}
    await service.ask("start", version="v2")
    for turn in range(STEPS):
        if turn < STEPS - 1:
            await service.until(lambda status, turn=turn: status["step"] == turn)  # type: ignore[misc]
        if turn % (STEPS // 5) == 0:
            await one_more()
        await all_answer(turn)
        if turn < STEPS - 1:
            await service.ask("promote", full=turn == STEPS - 2)
    assert {"old", "new"} == set(first)
    status = await service.ask("status")
    assert status["weight"] == 1, status
    await service.ask("rollback")
    await all_answer(-1)
    await one_more()
    assert first[-1] == "old"


async def test_mcp_sessions_stay_where_they_began(service: Any) -> None:
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    front = service(MCP)
    await front.up()
    async with contextlib.AsyncExitStack() as stack:

        async def begin() -> Ask:
            streams = await stack.enter_async_context(streamable_http_client(f"{front.url}/mcp"))
            session = await stack.enter_async_context(ClientSession(*streams[:2]))
            await session.initialize()

            async def ask() -> str:
                answer = await session.call_tool("who", {})
                return str(answer.content[0].text)  # type: ignore[union-attr]

            return ask

        await hundred_changes(front, begin)


@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]], ids=["polling", "upgraded"])
async def test_socketio_sessions_stay_where_they_began(service: Any, transports: list[str]) -> None:
    library = pytest.importorskip("socketio", reason="python-socketio is not installed")
    pytest.importorskip("aiohttp", reason="aiohttp, which python-socketio's client needs, is not installed")
    front = service(SOCKETIO)
    await front.up()
    clients: list[Any] = []

    async def begin() -> Ask:
        client = library.AsyncClient(reconnection=False)
        await client.connect(front.url, transports=transports)
        clients.append(client)
        counted = 0

        async def ask() -> str:
            nonlocal counted
            answer = str(await client.call("count", {}, timeout=20))
            counted += 1
            assert answer.endswith(f" {counted}"), (answer, counted)
            return answer

        return ask

    try:
        await hundred_changes(front, begin)
    finally:
        # By polling the client waits for its last poll, some 25 s: also from a bare server.
        await asyncio.gather(*(asyncio.wait_for(one.disconnect(), 1) for one in clients), return_exceptions=True)


@pytest.mark.slow
async def test_gradio_sessions_stay_where_they_began(service: Any) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    library = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
    sessions = ["client:json:session_hash", "client:query:session_hash",
                "client:path:/ui/gradio_api/heartbeat/{session_hash}"]  # fmt: skip
    front = service(GRADIO, sessions=sessions)
    await front.up()

    async def begin() -> Ask:
        client = await asyncio.to_thread(library.Client, f"{front.url}/ui/", verbose=False)
        counted = 0

        async def ask() -> str:
            nonlocal counted
            answer = str(await asyncio.to_thread(client.predict, "x", api_name="/count"))
            counted += 1
            assert answer.endswith(f" {counted}"), (answer, counted)
            return answer

        return ask

    await hundred_changes(front, begin)


async def events(url: str) -> AsyncIterator[str]:
    """An MCP client of the older transport: it keeps the stream that names its address open."""
    import httpx

    async with httpx.AsyncClient(trust_env=False, timeout=20) as http, http.stream("GET", f"{url}/sse") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                yield line[5:].strip()


SSE = """
import asyncio, json, uuid
sessions = {}

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("http only")
    if scope["path"] == "/sse":
        name = uuid.uuid4().hex
        queue = sessions[name] = asyncio.Queue()
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")]})
        data = f"event: endpoint\\ndata: /messages?session_id={name}\\n\\n"
        while True:
            await send({"type": "http.response.body", "body": data.encode(), "more_body": True})
            data = f"data: {await queue.get()}\\n\\n"
    found = sessions.get(scope["query_string"].decode().partition("=")[2])
    if found is not None:
        found.put_nowait(NAME)
    await send({"type": "http.response.start", "status": 202 if found is not None else 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""


async def test_sessions_of_the_older_mcp_transport_are_learned_from_its_first_event(service: Any) -> None:
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    front = service(SSE, sessions=["sse:session_id"])
    await front.up()
    async with httpx.AsyncClient(base_url=front.url, trust_env=False, timeout=20) as http:
        streams: list[Any] = []

        async def begin() -> Ask:
            stream = events(front.url)
            streams.append(stream)
            address = await anext(stream)

            async def ask() -> str:
                answer = await http.post(address)
                assert answer.status_code == 202, json.dumps([address, answer.status_code])
                return str(await anext(stream))

            return ask

        try:
            await hundred_changes(front, begin)
        finally:
            for stream in streams:
                await stream.aclose()
