"""HTTP calls over real sockets: what passes, what is judged how, on asyncio and trio alike."""

from __future__ import annotations

import socket
import time
from typing import Any

import anyio
import pytest

from deia_hardening.settings.units import Bytes, Seconds
from deia_hardening.upstream import (
    Aborted,
    FailedBeforeStart,
    NotSent,
    Outcome,
    UpstreamSettings,
    open_upstream,
    outcome_of,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def unix(server: Any, **settings: Any) -> Any:
    return open_upstream(f"unix:{server.path}", settings=UpstreamSettings(**settings))


def test_an_answer_passes_and_the_connection_is_kept(run, raw_server, answers, call):
    seen: list[bytes] = []
    server = raw_server(answers(OK, seen))

    async def main():
        upstream = unix(server)
        for _ in range(3):
            result = await call(upstream, path="/a?b")
            assert (result.status, result.body, result.error) == (200, b"ok", None)
            assert outcome_of(result.error, started=True) is Outcome.COMPLETED
        assert upstream.in_flight == 0

    run(main)
    assert server.connections == 1
    assert len(seen) == 3


def test_the_path_query_host_and_fields_arrive_and_hop_by_hop_ones_do_not(run, raw_server, answers, call):
    seen: list[bytes] = []
    server = raw_server(answers(OK, seen))
    fields = [
        (b"x-a", b"1"),
        (b"connection", b"keep-alive, X-Secret-Hop, upgrade"),
        (b"x-secret-hop", b"gone"),
        (b"keep-alive", b"timeout=5"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"proxy-connection", b"x"),
        (b"x-deia-context", b"forged"),
        (b"x-forwarded-for", b"6.6.6.6"),
    ]

    async def main():
        return await call(unix(server), path="/p%20q", headers=fields, query_string=b"x=1&y")

    run(main)
    lines = seen[0].decode().lower().split("\r\n")
    assert lines[0] == "get /p%20q?x=1&y http/1.1"
    assert "host: front.example" in lines
    assert "x-a: 1" in lines
    assert "x-forwarded-for: 203.0.113.9" in lines
    for name in ("x-secret-hop", "keep-alive", "upgrade", "te", "connection", "proxy-connection", "x-deia-context"):
        assert not any(line.startswith(name + ":") for line in lines), name
    assert "6.6.6.6" not in seen[0].decode()


@pytest.mark.parametrize(
    ("headers", "pieces", "wire"),
    [
        ([(b"content-length", b"4")], [b"abcd"], b"content-length: 4\r\n\r\nabcd"),
        ([(b"content-length", b"4")], [b"ab", b"cd"], b"content-length: 4\r\n\r\nabcd"),
        (
            [(b"transfer-encoding", b"chunked")],
            [b"ab", b"", b"cd"],
            b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n",
        ),
        ([(b"transfer-encoding", b"chunked")], [b"abcd"], b"content-length: 4\r\n\r\nabcd"),
        ([], [b"abcd"], b"content-length: 4\r\n\r\nabcd"),
        ([], [b""], b"\r\n\r\n"),
    ],
)
def test_bodies_are_framed_here(run, raw_server, call, headers, pieces, wire):
    got: list[bytes] = []

    def script(connection: socket.socket, number: int) -> None:
        data = b""
        while not data.endswith(wire):
            piece = connection.recv(65536)
            assert piece, data
            data += piece
        got.append(data)
        connection.sendall(OK)

    server = raw_server(script)

    async def main():
        result = await call(unix(server), "POST", headers=headers, body=pieces)
        assert (result.error, result.status) == (None, 200)

    run(main)
    assert got[0].count(b"content-length") + got[0].count(b"transfer-encoding") <= 1


def test_streams_arrive_as_they_are_sent(run, raw_server, read_head, call):
    """The second event is only written once the first has been seen by the client."""
    seen_first = __import__("threading").Event()

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert seen_first.wait(10)
        connection.sendall(b"data: 2\n\n")

    server = raw_server(script)

    async def main():
        async def on_send(message: dict[str, Any]) -> None:
            if message.get("body", b"").startswith(b"data: 1"):
                seen_first.set()

        result = await call(unix(server), on_send=on_send)
        assert result.error is None
        assert result.body == b"data: 1\n\ndata: 2\n\n"
        assert result.complete

    run(main)


def test_trailers_pass_when_the_server_can(run, raw_server, answers, call):
    data = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        b"2\r\nok\r\n0\r\nx-sum: 7\r\nset-cookie: evil\r\n\r\n"
    )
    seen: list[bytes] = []
    server = raw_server(answers(data, seen))

    async def main():
        upstream = unix(server)
        with_them = await call(upstream, extensions={"http.response.trailers": {}})
        without = await call(upstream)
        return with_them, without

    with_them, without = run(main)
    assert with_them.messages[0]["trailers"] is True
    assert with_them.messages[-1] == {
        "type": "http.response.trailers",
        "headers": [(b"x-sum", b"7")],
        "more_trailers": False,
    }
    assert b"te: trailers" in seen[0]
    assert "trailers" not in without.messages[0]
    assert [m["type"] for m in without.messages] == ["http.response.start", "http.response.body"]


def test_early_hints_pass_and_other_interim_answers_stay_here(run, raw_server, answers, call):
    data = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n" + OK
    server = raw_server(answers(data))

    async def main():
        upstream = unix(server)
        return await call(upstream, extensions={"http.response.early_hint": {}}), await call(upstream)

    hinted, plain = run(main)
    assert hinted.messages[0] == {"type": "http.response.early_hint", "links": [b"</a.css>"]}
    assert hinted.body == plain.body == b"ok"
    assert plain.messages[0]["type"] == "http.response.start"


def test_head_204_and_304_have_no_body_and_keep_the_connection(run, raw_server, read_head, call):
    replies = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
        OK,
    ]

    def script(connection: socket.socket, number: int) -> None:
        for reply in replies:
            read_head(connection)
            connection.sendall(reply)

    server = raw_server(script)

    async def main():
        upstream = unix(server)
        head = await call(upstream, "HEAD")
        assert head.headers[b"content-length"] == b"5000"
        assert (await call(upstream)).status == 204
        assert (await call(upstream)).status == 304
        assert (await call(upstream)).body == b"ok"

    run(main)
    assert server.connections == 1


def test_expect_waits_for_the_upstreams_word(run, raw_server, read_head, call):
    def script(connection: socket.socket, number: int) -> None:
        head = read_head(connection)
        assert head.endswith(b"\r\n\r\n"), "the body came before the 100"
        assert b"expect: 100-continue" in head
        if number == 0:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert connection.recv(100) == b"abcd"
            connection.sendall(OK)
        else:
            connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
            assert connection.recv(100) == b"", "a refused body was sent"

    server = raw_server(script)

    async def main():
        upstream = unix(server, keep_alive=Seconds(0), max_idle=0)
        headers = [(b"expect", b"100-continue"), (b"content-length", b"4")]
        first = await call(upstream, "PUT", headers=headers, body=[b"abcd"])
        assert (first.status, first.body) == (200, b"ok")
        second = await call(upstream, "PUT", headers=headers, body=[b"abcd"])
        assert second.status == 413
        assert second.received == 0

    run(main)


def test_an_early_answer_to_a_long_upload_passes_and_the_connection_is_not_used_again(run, raw_server, read_head, call):
    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        while connection.recv(65536):
            pass

    server = raw_server(script)

    async def main():
        upstream = unix(server)
        for _ in range(2):
            blocked = [b"x" * 10, *[b"y" * 100_000] * 200]
            result = await call(upstream, "POST", headers=[(b"content-length", b"20000010")], body=blocked)
            assert (result.status, result.body) == (413, b"big")

    run(main)
    assert server.connections == 2


def test_nobody_listening_is_not_sent(run, tmp_path, call):
    async def main():
        result = await call(open_upstream(f"unix:{tmp_path}/none.sock"))
        assert isinstance(result.error, NotSent)
        assert result.error.cause == "refused"
        assert result.error.consumed is False
        assert result.received == 0
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = await call(open_upstream(f"http://127.0.0.1:{port}"), "POST", body=[b"x"])
        assert isinstance(result.error, NotSent)
        assert result.error.cause == "refused"
        assert result.received == 0

    run(main)


def test_a_close_without_reading_a_head_is_not_sent(run, raw_server, call):
    """On a Unix socket the reset proves that the head was never read whole."""

    def script(connection: socket.socket, number: int) -> None:
        deadline = time.monotonic() + 10
        while not connection.recv(1, socket.MSG_PEEK) and time.monotonic() < deadline:
            pass
        # closed with the request unread

    server = raw_server(script)

    async def main():
        result = await call(unix(server))
        assert isinstance(result.error, NotSent), result.error
        assert result.error.outcome is Outcome.NOT_SENT
        posted = await call(unix(server), "POST", body=[b"abc"])
        assert isinstance(posted.error, FailedBeforeStart)
        assert posted.error.consumed

    run(main)


def test_a_close_after_reading_is_failed_before_start(run, raw_server, read_head, call):
    server = raw_server(lambda connection, number: read_head(connection))

    async def main():
        result = await call(unix(server))
        assert isinstance(result.error, FailedBeforeStart)
        assert result.error.cause == "reset"
        assert result.messages == []

    run(main)


def test_a_break_after_the_start_is_aborted(run, raw_server, answers, call):
    server = raw_server(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", close=True))

    async def main():
        result = await call(unix(server))
        assert isinstance(result.error, Aborted)
        assert result.error.outcome is Outcome.STARTED
        assert result.status == 200
        assert not result.complete

    run(main)


@pytest.mark.parametrize(("method", "repeated"), [("GET", True), ("HEAD", True), ("POST", False), ("DELETE", False)])
def test_a_kept_connection_that_closes_under_the_request(run, raw_server, read_head, call, method, repeated):
    """The second request meets a connection that closes after reading: repeated only when that is safe."""

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        if number == 0:
            read_head(connection)  # takes the second request and closes without a word
        else:
            read_head(connection)

    server = raw_server(script)

    async def main():
        upstream = unix(server)
        assert (await call(upstream)).status == 204
        second = await call(upstream, method, body=[b""])
        if repeated:
            assert (second.error, second.status) == (None, 204)
        else:
            assert isinstance(second.error, FailedBeforeStart)

    run(main)
    assert server.connections == (2 if repeated else 1)


def test_what_may_be_repeated_can_be_said(run, raw_server, read_head, call):
    """A GET with effects is not repeated when the caller says so."""

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        read_head(connection)

    server = raw_server(script)

    async def main():
        upstream = open_upstream(f"unix:{server.path}", repeatable=lambda scope: scope["path"] != "/mailbox")
        assert (await call(upstream)).status == 204
        assert isinstance((await call(upstream, path="/mailbox")).error, FailedBeforeStart)

    run(main)


def test_a_connection_that_closed_while_idle_is_replaced(run, raw_server, answers, call):
    """A POST too: the end was seen before anything was written, so nothing is repeated."""
    server = raw_server(answers(OK, close=True))

    async def main():
        upstream = unix(server)
        for _ in range(3):
            result = await call(upstream, "POST", body=[b"x"])
            assert (result.error, result.body) == (None, b"ok")
            while server.threads[-1].is_alive():
                await anyio.sleep(0.001)

    run(main)
    assert server.connections == 3


def test_a_silent_upstream_ends_at_the_time_limit(run, raw_server, read_head, call):
    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        if number:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nstart")
        connection.recv(1)

    server = raw_server(script)

    async def main():
        upstream = unix(server, first_byte_timeout=Seconds(0.05), idle_timeout=Seconds(0.05))
        first = await call(upstream)
        assert isinstance(first.error, FailedBeforeStart)
        assert first.error.cause == "first_byte_timeout"
        second = await call(upstream)
        assert isinstance(second.error, Aborted)
        assert second.error.cause == "idle_timeout"

    run(main)


def test_a_client_that_leaves_takes_the_upstreams_connection_with_it(run, raw_server, read_head, call):
    closed = __import__("threading").Event()

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        assert connection.recv(1) == b""
        closed.set()

    server = raw_server(script)

    async def main():
        upstream = unix(server, watch_after=Seconds(0.01))
        result = await call(upstream, leave=True)
        assert result.error is None
        assert result.messages == []
        with anyio.fail_after(5):
            while not closed.is_set():
                await anyio.sleep(0.001)

    run(main)


def test_a_cancelled_call_closes_the_connection(run, raw_server, read_head, call):
    closed = __import__("threading").Event()

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        reading.set()
        assert connection.recv(1) == b""
        closed.set()

    reading = __import__("threading").Event()
    server = raw_server(script)

    async def main():
        upstream = unix(server)
        async with anyio.create_task_group() as group:
            group.start_soon(call, upstream)
            while not reading.is_set():
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
        assert upstream.in_flight == 0
        with anyio.fail_after(5):
            while not closed.is_set():
                await anyio.sleep(0.001)

    run(main)


def test_what_the_clients_send_raises_passes_untouched(run, raw_server, answers, call):
    server = raw_server(answers(OK))

    async def main():
        async def on_send(message: dict[str, Any]) -> None:
            raise ZeroDivisionError("the app's own")

        upstream = unix(server)
        assert isinstance((await call(upstream, on_send=on_send)).error, ZeroDivisionError)
        assert (await call(upstream)).body == b"ok"

    run(main)


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
