"""HTTP calls over real sockets: slow clients, full pools, stops, several loops, checks."""

from __future__ import annotations

import socket
from typing import Any

import anyio

from deia_hardening.settings.units import Bytes, Seconds
from deia_hardening.upstream import NotSent, open_upstream

from .test_exchange import OK, unix


def test_a_slow_client_stops_the_upstream(run, raw_server, read_head, call):
    """With the client stopped, the peer can't write more than buffers hold: far less than its 64 MiB."""
    written = [0]
    total = 64 * 1024 * 1024

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while written[0] < total:
            written[0] += connection.send(piece[: total - written[0]])

    server = raw_server(script)

    async def main():
        held = anyio.Event()
        stopped_at = 0
        got = 0

        async def on_send(message: dict[str, Any]) -> None:
            nonlocal stopped_at, got
            got += len(message.get("body", b""))
            message["body"] = b""
            if got and not held.is_set():
                held.set()
                before = -1
                while before != written[0]:  # until the peer no longer makes progress
                    before = written[0]
                    await anyio.sleep(0.1)
                stopped_at = written[0]

        result = await call(unix(server, buffer=Bytes("256KiB")), on_send=on_send)
        assert result.error is None
        assert got == total
        assert 0 < stopped_at < 4 * 1024 * 1024

    run(main)


def test_a_slow_client_is_not_taken_for_a_silent_upstream(run, raw_server, read_head, call):
    """A client that stops for longer than `idle_timeout` still gets all of it: the other side was never silent."""
    total = 4 * 1024 * 1024

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total + b"x" * total)

    server = raw_server(script)

    async def main():
        stopped = False

        async def on_send(message: dict[str, Any]) -> None:
            nonlocal stopped
            if message.get("body") and not stopped:
                stopped = True
                await anyio.sleep(0.4)

        result = await call(unix(server, idle_timeout=Seconds(0.1), buffer=Bytes("64KiB")), on_send=on_send)
        assert result.error is None
        assert len(result.body) == total

    run(main)


def test_a_full_pool_waits_and_then_is_not_sent(run, raw_server, read_head, call):
    release = __import__("threading").Event()

    def script(connection: socket.socket, number: int) -> None:
        while read_head(connection):
            assert release.wait(10)
            connection.sendall(OK)

    server = raw_server(script)

    async def main():
        upstream = unix(server, max_connections=1, connect_timeout=Seconds(0.2))
        results = []

        async def one() -> None:
            results.append(await call(upstream))

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            while upstream.in_flight == 0 or server.connections == 0:
                await anyio.sleep(0.001)
            refused = await call(upstream)
            assert isinstance(refused.error, NotSent)
            assert refused.error.cause == "pool_full"
            group.start_soon(one)
            await anyio.sleep(0.01)
            release.set()
        assert [result.body for result in results] == [b"ok", b"ok"]

    run(main)
    assert server.connections == 1


def test_a_stopped_upstream_refuses_and_starts_again(run, raw_server, answers, call):
    server = raw_server(answers(OK))

    async def main():
        upstream = unix(server)
        assert (await call(upstream)).body == b"ok"
        assert (await upstream.ready()).ok
        await upstream.stop()
        assert (await call(upstream)).error.cause == "stopped"
        await upstream.start()
        assert (await call(upstream)).body == b"ok"

    run(main)


def test_it_serves_from_several_loops_one_after_the_other(raw_server, answers, call):
    server = raw_server(answers(OK))
    upstream = unix(server)

    async def main():
        assert (await call(upstream)).body == b"ok"

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        anyio.run(main, backend=backend)
    assert server.connections == 4


def test_the_active_check_asks_the_path(run, raw_server, answers, call):
    sick = raw_server(answers(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"))
    well = raw_server(answers(OK))

    async def main():
        assert not (await unix(sick, probe_path="/health").ready()).ok
        assert (await unix(sick).ready()).ok
        assert (await unix(well, probe_path="/health").ready()).ok
        gone = await open_upstream("unix:/nonexistent.sock").ready()
        assert not gone.ok

    run(main)
