"""What a hop to an upstream costs, beside the same app called directly.

    python benchmarks/upstream.py              # all of it, about a minute
    python benchmarks/upstream.py --short      # a slice for CI: small stream, short runs

Three processes: wrk, a uvicorn front, and a child that the front calls. `direct` is the same front with the
app in it; `bytes relayed` is a front that only copies bytes to the child and back, understanding none: what
the hop costs before anybody reads HTTP; `an ASGI front that reads nothing` sends the child the same bytes each
time and answers with the same messages: what is left of that, no proxy that is an ASGI app can save. Goals: at
most 120 µs added at one connection, at least 55% of direct at 32. In every arrangement the front has a core to
itself and wrk and the child share another: left to the scheduler, three processes that wake each other are put
on one core now and then, and what is compared is luck.
The machine should be idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deia_hardening.upstream import UpstreamSettings, open_upstream

STREAM_PIECE = b"x" * 65536


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The service: a small answer, an echo, a long stream."""
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    if scope["path"].startswith("/stream/"):
        left = int(scope["path"][8:])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while left > 0:
            await send({"type": "http.response.body", "body": STREAM_PIECE[:left], "more_body": True})
            left -= len(STREAM_PIECE)
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})


if os.environ.get("UPSTREAM_SOCKET"):
    front = open_upstream("unix:" + os.environ["UPSTREAM_SOCKET"], settings=UpstreamSettings())
if os.environ.get("HTTPX_SOCKET"):
    import httpx

    _client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=os.environ["HTTPX_SOCKET"]))

    async def httpx_front(scope: Any, receive: Any, send: Any) -> None:
        """What one would write with httpx."""
        if scope["type"] != "http":
            raise RuntimeError("none")
        answer = await _client.request(scope["method"], "http://child" + scope["path"])
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
        await send({"type": "http.response.body", "body": answer.content})


class Least(asyncio.Protocol):
    """The child's connection of a front that reads nothing of the answer but its end."""

    idle: list[Least] = []  # noqa: RUF012
    seen = b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if self.seen.endswith(b"Hello, world!"):
            self.waiter.set_result(None)

    async def call(self, sock: socket.socket) -> None:
        self.sock, self.seen, self.waiter = sock, b"", asyncio.get_running_loop().create_future()
        sock.send(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx-forwarded-for: 127.0.0.1\r\n\r\n")
        await self.waiter
        self.idle.append(self)


async def least_front(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI app does for a hop: a write, a future, two messages."""
    if scope["type"] != "http":
        raise RuntimeError("none")
    if Least.idle:
        connection = Least.idle.pop()
        await connection.call(connection.sock)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(os.environ["UPSTREAM_SOCKET"])
        _, connection = await asyncio.get_running_loop().create_unix_connection(Least, sock=sock)
        await connection.call(sock)
    await app({"type": "http", "path": "/"}, receive, send)


class Relay(asyncio.Protocol):
    """Copies bytes to the child and back: one side of it; `other` is the other."""

    transport: asyncio.Transport

    def __init__(self, path: str = "", other: Relay | None = None) -> None:
        self.path = path
        self.other = other
        self.early = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.path:
            self.opening = asyncio.get_running_loop().create_task(self.open())

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.other = await loop.create_unix_connection(lambda: Relay(other=self), self.path)
        self.other.transport.write(self.early)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: BaseException | None) -> None:
        if self.other is not None:
            self.other.transport.close()


async def relay(port: int, child: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Relay(child), "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def uvicorn(target: str, *where: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A uvicorn process serving `target` (or the relay), up when this yields."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        f"upstream:{target}",
        "--log-level",
        "critical",
        "--no-access-log",
        *where,
    ]
    if target == "relay":
        command = [sys.executable, str(Path(__file__)), "--relay", where[1], env["UPSTREAM_SOCKET"]]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, env={**os.environ, **env})
    try:
        unix = where[0] == "--uds"
        for _ in range(500):
            with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
                if sock.connect_ex(where[1] if unix else ("127.0.0.1", int(where[1]))) == 0:
                    break
            time.sleep(0.02)
        else:
            raise SystemExit(f"{target} did not start")
        yield process
    finally:
        process.terminate()
        process.wait()


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, where the system can; the first is the front's."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(os.getpid()))
        os.sched_setaffinity(pid, {cores[core % len(cores)]})


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


def wrk(port: str, connections: int, seconds: int, *, strict: bool = True) -> tuple[float, float]:
    """Requests per second, and the mean seconds of one at this many connections."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pin(process.pid, 1)
        out, _ = process.communicate()
    if "Non-2xx" in out or ("Socket errors" in out and strict):
        raise SystemExit(f"wrk saw errors:\n{out}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", out)
    assert found
    rate = float(found[1])
    return rate, connections / rate


def cpu_seconds(pid: int) -> tuple[float, float]:
    """What a process has used so far, in user and in system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def rate_table(child: str, seconds: int) -> bool:
    """Direct, through an upstream, through httpx; interleaved twice, the better run of each counts."""
    results: dict[str, list[tuple[float, float, float, float]]] = {}
    arrangements = {
        "direct (the app in the front)": ("app", {}),
        "bytes relayed, unix:": ("relay", {"UPSTREAM_SOCKET": child}),
        "an ASGI front that reads nothing": ("least_front", {"UPSTREAM_SOCKET": child}),
        "deia upstream, unix:": ("front", {"UPSTREAM_SOCKET": child}),
        "httpx over the same socket": ("httpx_front", {"HTTPX_SOCKET": child}),
    }
    for _ in range(2):
        for name, (target, env) in arrangements.items():
            port = free_port()
            strict = target != "httpx_front"  # it times out on a loaded machine, which is its result
            with uvicorn(target, "--port", port, **env) as process:
                pin(process.pid, 0)
                wrk(port, 4, 1, strict=False)
                _, latency = wrk(port, 1, seconds, strict=strict)
                before = cpu_seconds(process.pid)
                rate, _ = wrk(port, 32, seconds, strict=strict)
                used = cpu_seconds(process.pid)
                user, system = ((used[i] - before[i]) / (rate * seconds) for i in (0, 1))
                results.setdefault(name, []).append((latency, rate, user, system))
    best = {
        name: (min(r[0] for r in rows), max(r[1] for r in rows), *min((r[2], r[3]) for r in rows))
        for name, rows in results.items()
    }
    base = best["direct (the app in the front)"]
    print(
        f"{'':32}{'1 connection':>14}{'added':>10}{'32 connections':>17}{'of direct':>11}{'CPU user+sys':>18}{'of':>6}"
    )
    for name, (latency, rate, user, system) in best.items():
        print(
            f"{name:32}{latency * 1e6:11.0f} µs{(latency - base[0]) * 1e6:7.0f} µs{rate:13.0f} r/s"
            f"{rate / base[1]:10.0%}{user * 1e6:9.1f} +{system * 1e6:4.1f} µs"
            f"{(base[2] + base[3]) / (user + system):11.0%}"
        )
    ours = best["deia upstream, unix:"]
    added, share = (ours[0] - base[0]) * 1e6, ours[1] / base[1]
    good = added <= 120 and share >= 0.55
    print(f"goal: added ≤ 120 µs: {added:.0f} µs; ≥ 55% of direct at 32: {share:.0%}: {'met' if good else 'MISSED'}")
    return good


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(b"host", b"bench"), (b"user-agent", b"bench"), (b"accept", b"*/*")],
        "client": ("127.0.0.1", 1),
        "extensions": {},
    }


async def never() -> Any:
    await asyncio.Event().wait()


async def calls(child: str, count: int) -> None:
    """Calls as a caller in this process sees them, 32 at a time, with no front."""
    upstream = open_upstream(f"unix:{child}")
    left = count

    async def send(message: Any) -> None:
        pass

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await upstream(scope_of("/"), never, send)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(32)))
    took, used = time.perf_counter() - began, time.process_time() - cpu
    print(f"bare calls, 32 at a time: {count / took:.0f} calls/s, {used / count * 1e6:.1f} µs CPU each")


async def stream(child: str, size: int) -> bool:
    """One long answer; memory must not follow it."""
    upstream = open_upstream(f"unix:{child}")
    got = 0

    async def send(message: Any) -> None:
        nonlocal got
        got += len(message.get("body", b""))

    await upstream(scope_of("/stream/8000000"), never, send)
    got, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    await upstream(scope_of(f"/stream/{size}"), never, send)
    took = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    good = got == size and grown < 16 * 1024
    print(
        f"stream of {size / 1e6:.0f} MB: {size / took / 1e6:.0f} MB/s, memory grew {grown} KiB: "
        f"{'flat' if good else 'MISSED'}"
    )
    return good


def echoes(child: str, count: int) -> bool:
    """WebSocket messages one after the other through a front."""
    from websockets.sync.client import connect

    port = free_port()
    with uvicorn("front", "--port", port, UPSTREAM_SOCKET=child), connect(f"ws://127.0.0.1:{port}/") as ws:
        began = time.perf_counter()
        lost = 0
        for number in range(count):
            ws.send(str(number))
            lost += ws.recv() != str(number)
        took = time.perf_counter() - began
    print(f"{count} WebSocket echoes: {took / count * 1e6:.0f} µs each, {lost} lost or changed")
    return lost == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a slice for CI")
    parser.add_argument("--relay", nargs=2, metavar=("PORT", "SOCKET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    short = arguments.short
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    if arguments.relay:
        run(relay(int(arguments.relay[0]), arguments.relay[1]))
        return 0
    if os.getloadavg()[0] > 1:
        print("This machine is busy with other things: take the times with care, the CPU figures less so.")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        child = f"{folder}/child.sock"
        # as a `process:` child is run
        with uvicorn("app", "--uds", child, "--no-date-header", "--no-server-header") as process:
            pin(process.pid, 1)
            if shutil.which("wrk"):
                good &= rate_table(child, 1 if short else 4)
            else:
                print("wrk is not installed: the table of rates is left out")
            run(calls(child, 5_000 if short else 50_000))
            good &= run(stream(child, 64_000_000 if short else 1_000_000_000))
            good &= echoes(child, 1_000 if short else 10_000)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
