"""HTTP calls over real sockets that fail or break off: what is judged how, on asyncio and trio alike."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import anyio
import pytest

from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import Aborted, FailedBeforeStart, NotSent, Outcome, open_upstream

from .test_exchange import OK, unix


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


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nx-", b"HTTP/1.1 102 Processing\r\n\r\n"])
def test_a_head_that_does_not_end_is_silence_too(run, raw_server, read_head, call, said):
    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(said)
        connection.recv(1)

    server = raw_server(script)

    async def main():
        result = await call(unix(server, first_byte_timeout=Seconds(0.05)))
        assert isinstance(result.error, FailedBeforeStart)
        assert result.error.cause == "first_byte_timeout"

    run(main)


def test_an_answer_that_breaks_the_rules_before_any_of_it_went_on_has_not_started(run, raw_server, answers, call):
    server = raw_server(answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nx\r\n", close=True))

    async def main():
        result = await call(unix(server))
        assert isinstance(result.error, FailedBeforeStart)
        assert (result.error.cause, result.messages) == ("malformed", [])

    run(main)


def test_a_reset_is_no_end_of_an_answer(run, raw_server, call, scope):
    """Bytes of ours that nobody read make the other side's close a reset: an answer without a length is not whole."""

    def script(connection: socket.socket, number: int) -> None:
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nstart")
        connection.close()

    server = raw_server(script)

    async def main():
        messages: list[dict[str, Any]] = []
        asked = 0

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            if asked == 1:
                return {"type": "http.request", "body": b"x" * 1000, "more_body": True}
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        with pytest.raises(Aborted, match="the connection broke"):
            await unix(server)(scope("POST", "/", [(b"content-length", b"2000")]), receive, send)
        assert messages[0]["status"] == 200
        assert not [message for message in messages[1:] if not message["more_body"]]

    run(main)


def test_an_answer_that_falls_silent_ends_however_long_its_first_byte_may_take(run, raw_server, read_head, call):
    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nstart")
        connection.recv(1)

    server = raw_server(script)

    async def main():
        result = await call(unix(server, first_byte_timeout=Seconds(0), idle_timeout=Seconds(0.05)))
        assert isinstance(result.error, Aborted)
        assert result.error.cause == "idle_timeout"
        assert result.body == b"start"
        assert not result.complete, "the client takes what was cut off for the whole answer"

    run(main)


def test_a_client_that_leaves_takes_the_upstreams_connection_with_it(run, raw_server, read_head, call):
    closed = threading.Event()

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
    closed = threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        read_head(connection)
        reading.set()
        assert connection.recv(1) == b""
        closed.set()

    reading = threading.Event()
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
