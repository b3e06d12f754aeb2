"""HTTP calls over real sockets: what passes, and how, on asyncio and trio alike."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import Outcome, UpstreamSettings, open_upstream, outcome_of

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


def test_date_and_server_are_left_to_the_server_in_front(run, raw_server, answers, call):
    server = raw_server(answers(b"HTTP/1.1 200 OK\r\nDate: x\r\nserver: y\r\nx-a: 1\r\ncontent-length: 2\r\n\r\nok"))

    async def main():
        return await call(unix(server))

    assert run(main).messages[0]["headers"] == [(b"x-a", b"1"), (b"content-length", b"2")]


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
        b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
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
        for status in (204, 304):
            empty = await call(upstream)
            assert empty.status == status
            assert b"content-length" not in empty.headers  # a server that counts what it sends would call it cut
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


def test_who_answers_an_upload_and_closes_under_it_is_heard(run, raw_server, read_head, call, scope):
    """The write that fails is seen before the answer is read: it lies in the socket still."""
    closed = threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        connection.close()
        closed.set()

    server = raw_server(script)

    async def main():
        messages: list[dict[str, Any]] = []
        pieces = [b"x"] * 30

        async def receive() -> dict[str, Any]:
            if len(pieces) < 30:
                assert closed.wait(10)  # the loop stands, so that nothing is read in between
            return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        headers = [(b"content-length", b"30")]
        await unix(server)(scope("POST", "/", headers), receive, send)
        assert messages[0]["status"] == 413
        assert b"".join(message["body"] for message in messages[1:]) == b"big"

    run(main)
