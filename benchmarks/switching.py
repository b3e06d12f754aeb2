"""Clients that notice a lost request, and the servers that they ask: shared by the migration benchmarks.

A request is lost when it gets no whole answer, or another status than 200. Clients do what RFC 9112 asks of them: after
`connection: close` they open a new connection; a kept connection that the server has closed meanwhile is opened anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

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


def free_port() -> int:
    """A TCP port that is free now."""
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
        self._turn = 0

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
        self._turn += 1
        if self._turn % 2:  # what may not be asked twice: nothing on the way can hide a loss by asking again
            writer.write(b"POST / HTTP/1.1\r\nhost: bench\r\n" + connection + b"content-length: 2\r\n\r\n{}")
        else:
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

    def report(self, name: str, switches: int, seconds: float, tally: Path | None) -> None:
        """Print what was counted; with a tally file, of all slices that wrote to it."""
        every: dict[str, dict[str, dict[str, int]]] = (
            json.loads(tally.read_text()) if tally is not None and tally.exists() else {}
        )
        mine = every.setdefault(name, {"counts": {}, "lost": {}, "why": {}, "all": {}})
        for kind, found in (("counts", self.counts), ("lost", self.lost), ("why", self.why)):
            mine[kind] = dict(Counter(mine[kind]) + found)
        mine["all"] = dict(Counter(mine["all"]) + Counter(switches=switches, seconds=round(seconds)))
        if tally is not None:
            tally.write_text(json.dumps(every, indent=1))
        total, lost = sum(mine["counts"].values()), sum(mine["lost"].values())
        print(f"{name}: {mine['all'].get('switches', 0)} switchovers, {total} requests in "
              f"{mine['all'].get('seconds', 0)} s, {lost} lost")  # fmt: skip
        for kind in sorted(mine["counts"]):
            print(f"    {kind:32} {mine['counts'][kind]:9} of which lost {mine['lost'].get(kind, 0)}")
        for reason, count in Counter(mine["why"]).most_common(4):
            print(f"      {count} × {reason}")


@contextlib.asynccontextmanager
async def server(folder: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python module as a server (or, where the first word is a path, a program), ended by its id."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}
    program = command if command[0].startswith("/") else (sys.executable, "-m", *command)
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*program, cwd=folder, env=environment, stdout=log, stderr=log)
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
    """The body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return (await asyncio.wait_for(reader.read(-1), 20)).decode().partition("\r\n\r\n")[2]
    finally:
        writer.close()


async def up(port: int) -> None:
    """Wait until a server answers."""
    for _ in range(1_200):
        try:
            if await get(port, "/"):
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the server did not come up")
