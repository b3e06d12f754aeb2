"""What a switch of versions costs: the layer per request, and requests lost while versions are switched under load.

    python benchmarks/migration.py cost
    python benchmarks/migration.py switch [--switchovers 10] [--seconds 3] [--beside]

`cost` measures the layer alone around a do-nothing app, in one process. `switch` starts a real server (uvicorn) with
a hardened app, keeps it under load over keep-alive and fresh connections, streams and WebSockets, and switches the
version that answers (the app itself and a process beside it, in turn). With `--beside` uvicorn and granian reload their
workers (SIGHUP) under the same load: the equal operation without this package.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from deia_hardening.context import Exchange, RequestContext
from deia_hardening.control.client import Client
from deia_hardening.routing import Routes
from deia_migration.choose import Chooser
from deia_migration.middleware import Rules, SplitLayer
from deia_migration.outcome import BodyRules
from deia_migration.sessions import SessionTable
from deia_migration.settings import MigrationSettings
from deia_migration.split import Split
from deia_migration.traffic import Live, Router, Version

# -- the layer alone ----------------------------------------------------------------------------------------------


class NoRevision:
    effects: Routes[bool] = Routes([])
    long: Routes[bool] = Routes([])


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """A do-nothing app."""


HEADERS = [
    (b"host", b"shop.example"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"content-type", b"application/json"),
    (b"content-length", b"100"),
    (b"authorization", b"Bearer abc"),
]


async def per_call(app: Any, headers: list[tuple[bytes, bytes]], number: int = 50_000) -> float:
    """Microseconds per call, the best of five."""
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/x", "headers": headers, "client": ("10.0.0.1", 1),
        "query_string": b"",
    }  # fmt: skip
    exchange = Exchange(nothing, nothing)  # type: ignore[arg-type]
    exchange.status, exchange.complete = 200, True
    exchange.started = time.monotonic()
    scope["deia_hardening"] = RequestContext(scope, NoRevision, exchange)  # type: ignore[arg-type]
    best = 1e9
    for _ in range(5):
        began = time.process_time()
        for _ in range(number):
            await app(scope, nothing, nothing)
        best = min(best, (time.process_time() - began) / number * 1e6)
    return best


async def cost() -> None:
    settings = MigrationSettings()
    with tempfile.TemporaryDirectory() as folder:
        table = SessionTable(Path(folder, "sessions"), 65_536)
        table.open()
        router = Router()
        page = object()
        router.state = lambda: page
        router.seen = page
        candidate = Version("v2", 5, nothing)
        candidate.ready = True
        told: list[Any] = []
        rules = Rules(Chooser(settings, table), BodyRules(settings.failure), frozenset(), True)
        layer = SplitLayer(nothing, router, rules, lambda outcome: told.clear())
        keyed = [*HEADERS, (b"x-conversation-id", b"conversation-1234")]
        bare = await per_call(nothing, HEADERS)
        print(f"a do-nothing app: {bare:.2f} µs; added by the layer, in µs of CPU per request:")
        rows: list[tuple[str, float | None, list[tuple[bytes, bytes]]]] = [
            ("no rollout", None, HEADERS),
            ("rollout at 10%, sticky key, answered by old", 0.1, keyed),
            ("rollout at 10%, no key (blocks)", 0.1, HEADERS),
            ("rollout at 100%, answered by new (shield and outcome included)", 1.0, keyed),
            ("rollout at 10%, with a session id", 0.1, [*HEADERS, (b"mcp-session-id", b"0123456789abcdef")]),
        ]
        for name, weight, headers in rows:
            router.live = (
                None
                if weight is None
                else Live(rollout="r", split=Split("r"), weight=weight, stable=router.app, candidate=candidate)
            )
            print(f"  {name:66} {await per_call(layer, headers) - bare:6.2f}")
        live = router.live
        assert live is not None
        began, number = time.process_time(), 200_000
        for _ in range(number):
            live.split.new(b"conversation-1234", 0.1)
        print(
            f"  {'of that, the split itself (SHA-256, compare)':66} {(time.process_time() - began) / number * 1e6:6.2f}"
        )
        table.close()


# -- real servers ---------------------------------------------------------------------------------------------------

APP = """
import asyncio, json, os, sys
NAME = "old"

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
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": NAME})
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"end"})
        return
    body = NAME.encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

FRONT = """
from deia_hardening import harden
from bench_old import app
app = harden(app, {"home": HOME, "migration": {
    "versions": {"v2": {"target": "process:bench_new:app", "folder": FOLDER}},
    "plan": {"steps": [], "bake": "0s", "holdback": "0%", "promote": "timed", "limits": {"drain": "5s"}},
    "tick": "50ms"}})
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Load:
    """Clients of every kind; counts what was answered and what was lost."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.why: Counter[str] = Counter()
        self._over = False

    def stop(self) -> None:
        self._over = True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(self._keep_alive())
            for _ in range(4):
                group.create_task(self._fresh())
            for _ in range(3):
                group.create_task(self._streams())
            for _ in range(2):
                group.create_task(self._websockets())

    def _count(self, kind: str, error: BaseException | None) -> None:
        self.counts[kind] += 1
        if error is not None:
            self.lost[kind] += 1
            self.why[f"{kind}: {type(error).__name__} {error}"[:90]] += 1

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, close: bool) -> bool:
        """One request; whether the server will take another on this connection (RFC 9112, section 9.3)."""
        connection = b"connection: close\r\n" if close else b""
        writer.write(b"GET / HTTP/1.1\r\nhost: bench\r\n" + connection + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(head.split(b"\r\n")[0].decode())
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        return b"\r\nconnection: close" not in head.lower()

    async def _keep_alive(self) -> None:
        """As a client library does it: an idle connection that was closed is opened anew, a broken answer is lost."""
        while not self._over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self._count("keep-alive", error)
                await asyncio.sleep(0.05)
                continue
            try:
                more = True
                while more and not self._over and not reader.at_eof():
                    more = await self._ask(reader, writer, False)
                    self._count("keep-alive", None)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self._count("keep-alive", error)
            finally:
                writer.close()

    async def _fresh(self) -> None:
        while not self._over:
            error: BaseException | None = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    await self._ask(reader, writer, True)
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as caught:
                error = caught
            self._count("fresh", error)
            await asyncio.sleep(0.002)

    async def _streams(self) -> None:
        while not self._over:
            error: BaseException | None = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(b"GET /stream HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
                    whole = await asyncio.wait_for(reader.read(-1), 30)
                    if b"end" not in whole[-20:]:
                        raise ConnectionError("a stream was cut")
                finally:
                    writer.close()
            except (OSError, TimeoutError) as caught:
                error = caught
            self._count("streams", error)

    async def _websockets(self) -> None:
        import websockets

        while not self._over:
            try:
                async with websockets.connect(f"ws://127.0.0.1:{self.port}/ws") as client:
                    while not self._over:
                        await client.send("hello")
                        await asyncio.wait_for(client.recv(), 20)
                        self._count("websocket messages", None)
                        await asyncio.sleep(0.01)
            except websockets.ConnectionClosed as closed:
                told = closed.rcvd is not None and closed.rcvd.code == 1012  # the version was replaced: said so
                self.counts["websockets closed with 1012"] += told
                if not told:
                    self._count("websocket messages", closed)
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                self._count("websocket messages", error)
                await asyncio.sleep(0.05)

    def report(self, name: str, switches: int, seconds: float) -> None:
        total, lost = sum(self.counts.values()), sum(self.lost.values())
        print(f"{name}: {switches} switchovers, {total} requests in {seconds:.0f} s, {lost} lost")
        for kind in sorted(self.counts):
            print(f"    {kind:32} {self.counts[kind]:9} of which lost {self.lost[kind]}")
        for reason, count in self.why.most_common(4):
            print(f"      {count} × {reason}")


@contextlib.asynccontextmanager
async def server(folder: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=folder, env=environment,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return (await asyncio.wait_for(reader.read(-1), 20)).decode().partition("\r\n\r\n")[2]
    finally:
        writer.close()


async def up(port: int) -> None:
    for _ in range(1_200):
        try:
            if await get(port, "/"):
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the server did not come up")


def write(folder: Path) -> None:
    (folder / "bench_old.py").write_text(APP)
    (folder / "bench_new.py").write_text(APP.replace('NAME = "old"', 'NAME = "new"'))
    front = FRONT.replace("HOME", json.dumps(str(folder / ".deia"))).replace("FOLDER", json.dumps(str(folder)))
    (folder / "bench_front.py").write_text(front)


async def ours(switchovers: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        write(folder)
        async with server(folder, "uvicorn", "bench_front:app", "--port", str(port), "--no-access-log"):
            await up(port)
            load = Load(port)
            running = asyncio.create_task(load.run())
            began = time.monotonic()
            client = Client(folder / ".deia", timeout=30)
            for number in range(switchovers):
                to = "v2" if number % 2 == 0 else "app"
                await asyncio.to_thread(
                    client.call, "migration.start", {"version": to}, changes=True, reason="benchmark"
                )
                for _ in range(1_200):
                    status: Any = await asyncio.to_thread(client.call, "migration.status", {}, changes=False)
                    if status["phase"] in ("done", "rolled-back"):
                        break
                    await asyncio.sleep(0.05)
                if status["phase"] != "done":
                    raise SystemExit(f"switchover {number + 1} to {to} did not end well: {status}")
                assert await get(port, "/") == ("new" if to == "v2" else "old")
                await asyncio.sleep(seconds)
            load.stop()
            await running
            load.report("deia_migration behind uvicorn", switchovers, time.monotonic() - began)


async def beside(name: str, switchovers: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        write(folder)
        commands = {
            "uvicorn": ("uvicorn", "bench_old:app", "--port", str(port), "--workers", "2", "--no-access-log"),
            "granian": ("granian", "bench_old:app", "--interface", "asgi", "--port", str(port), "--workers", "2"),
        }
        async with server(folder, *commands[name]) as process:
            await up(port)
            load = Load(port)
            running = asyncio.create_task(load.run())
            began = time.monotonic()
            for _ in range(switchovers):
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(seconds + 3)
            load.stop()
            await running
            load.report(f"{name} reloading its workers", switchovers, time.monotonic() - began)


async def switch(arguments: argparse.Namespace) -> None:
    await ours(arguments.switchovers, arguments.seconds)
    if arguments.beside:
        for name in ("uvicorn", "granian"):
            await beside(name, arguments.switchovers, arguments.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("cost", "switch"))
    parser.add_argument("--switchovers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--beside", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(cost() if arguments.what == "cost" else switch(arguments))


if __name__ == "__main__":
    main()
