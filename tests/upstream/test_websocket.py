"""WebSockets to a real server (uvicorn on a Unix socket): messages, closes, denials, breaks."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from deia_hardening.settings.units import Bytes, Seconds
from deia_hardening.upstream import (
    Aborted,
    FailedBeforeStart,
    NotSent,
    UpstreamSettings,
    WebSocketSettings,
    open_upstream,
)


def accepting(head: bytes) -> Any:
    """The server's side of a WebSocket whose handshake is accepted; the answer is still to be sent."""
    from websockets.server import ServerProtocol

    protocol = ServerProtocol()
    protocol.receive_data(head)
    (request,) = protocol.events_received()
    protocol.send_response(protocol.accept(request))
    return protocol


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        raise RuntimeError
    await receive()
    path = scope["path"]
    if path == "/deny":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"token")]})
        await send({"type": "websocket.http.response.body", "body": b"who are you"})
        return
    if path == "/refuse":
        await send({"type": "websocket.close"})
        return
    if path == "/raise":
        raise ZeroDivisionError
    await send(
        {
            "type": "websocket.accept",
            "subprotocol": next(iter(scope["subprotocols"]), None),
            "headers": [(b"x-served", b"yes")],
        }
    )
    if path == "/greet":
        await send({"type": "websocket.send", "text": dict(scope["headers"]).get(b"x-a", b"").decode()})
        await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
        return
    if path == "/big":
        await send({"type": "websocket.send", "bytes": b"x" * 100_000})
    if path == "/flood":
        for number in range(2000):
            flooded[0] = number
            await send({"type": "websocket.send", "bytes": b"x" * 65536})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            closes.append((message.get("code"), message.get("reason")))
            return
        await send({"type": "websocket.send", **{k: v for k, v in message.items() if k in ("text", "bytes")}})


closes: list[Any] = []
flooded = [0]


class Client:
    """The client's side of an ASGI websocket scope."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.to_app, self._inbox = anyio.create_memory_object_stream[Any](100)
        self._outbox, self.from_app = anyio.create_memory_object_stream[Any](0)
        self.error: BaseException | None = None
        self.done = anyio.Event()

    async def run(self, upstream: Any) -> None:
        try:
            await upstream(self.scope, self._inbox.receive, self._outbox.send)
        except Exception as error:
            self.error = error
        finally:
            for stream in (self.to_app, self._inbox, self._outbox, self.from_app):
                if stream is not self.from_app:
                    stream.close()
            self.done.set()

    async def say(self, **message: Any) -> None:
        await self.to_app.send(message)

    async def hear(self) -> Any:
        return await self.from_app.receive()

    async def connect(self) -> Any:
        await self.say(type="websocket.connect")
        return await self.hear()


@pytest.fixture
def client(scope):
    def make(path: str = "/", headers: Any = (), subprotocols: Any = (), extensions: Any = None) -> Client:
        made = scope("GET", path, headers, type="websocket", scheme="ws", subprotocols=list(subprotocols))
        del made["method"]
        made["extensions"] = extensions or {}
        return Client(made)

    return make


@pytest.fixture
def talk(run):
    """Run `conversation(client)` beside the call."""

    def do(upstream: Any, client_of: Any, conversation: Any) -> Any:
        async def main() -> None:
            client = client_of()
            async with anyio.create_task_group() as group:
                group.start_soon(client.run, upstream)
                await conversation(client)
                await client.done.wait()
            client.from_app.close()
            return client

        return run(main)

    return do


@pytest.fixture
def server(serve_asgi):
    closes.clear()
    return open_upstream(f"unix:{serve_asgi(app)}")


def test_messages_subprotocol_and_headers_pass(talk, server, client):
    async def conversation(c: Client) -> None:
        accept = await c.connect()
        assert accept["type"] == "websocket.accept"
        assert accept["subprotocol"] == "mcp"
        assert accept["headers"] == [(b"x-served", b"yes")]  # two of Date are too many for a server in front
        for text in ("hello", "ü" * 1000, ""):
            await c.say(type="websocket.receive", text=text)
            assert await c.hear() == {"type": "websocket.send", "text": text}
        for data in (b"\0\xff", b"x" * 300_000):
            await c.say(type="websocket.receive", bytes=data)
            assert await c.hear() == {"type": "websocket.send", "bytes": data}
        await c.say(type="websocket.disconnect", code=4242, reason="done")

    result = talk(server, lambda: client(subprotocols=["mcp", "other"]), conversation)
    assert result.error is None
    for _ in range(500):
        if closes:
            break
        anyio.run(anyio.sleep, 0.01)
    assert closes == [(4242, "done")]


def test_a_close_by_the_upstream_passes_with_code_and_reason(talk, server, client):
    async def conversation(c: Client) -> None:
        await c.connect()
        assert (await c.hear())["text"] == "1"
        assert await c.hear() == {"type": "websocket.close", "code": 4001, "reason": "bye"}

    assert talk(server, lambda: client("/greet", [(b"x-a", b"1")]), conversation).error is None


def test_a_denial_passes_with_its_answer_where_the_server_can(talk, server, client):
    async def conversation(c: Client) -> None:
        start = await c.connect()
        assert start["type"] == "websocket.http.response.start"
        assert start["status"] == 401
        assert (b"x-why", b"token") in start["headers"]
        assert not {b"date", b"server"} & {name for name, _ in start["headers"]}
        assert (await c.hear())["body"] == b"who are you"

    extensions = {"websocket.http.response": {}}
    assert talk(server, lambda: client("/deny", extensions=extensions), conversation).error is None


@pytest.mark.parametrize("path", ["/deny", "/refuse", "/raise"])
def test_a_denial_is_a_close_where_it_can_not(talk, server, client, path):
    async def conversation(c: Client) -> None:
        assert (await c.connect())["type"] == "websocket.close"

    assert talk(server, lambda: client(path), conversation).error is None


def test_a_client_that_vanishes_ends_the_upstreams_side(talk, server, client):
    async def conversation(c: Client) -> None:
        await c.connect()
        await c.say(type="websocket.disconnect", code=1006)

    assert talk(server, client, conversation).error is None
    for _ in range(500):
        if closes:
            break
        anyio.run(anyio.sleep, 0.01)
    assert closes[0][0] in (1005, 1006)  # as uvicorn tells an app whose client vanished


def test_a_message_beyond_the_bound_closes_with_1009(talk, serve_asgi, client):
    settings = UpstreamSettings(websocket=WebSocketSettings(max_message=Bytes(1000)))
    upstream = open_upstream(f"unix:{serve_asgi(app)}", settings=settings)

    async def conversation(c: Client) -> None:
        await c.connect()
        assert (await c.hear())["code"] == 1009

    assert talk(upstream, lambda: client("/big"), conversation).error is None


def test_a_slow_client_stops_the_upstream(talk, server, client):
    """The app behind wants to send 128 MiB; with nobody reading it is stopped long before."""

    async def conversation(c: Client) -> None:
        await c.connect()
        await c.hear()
        before = -1
        while before != flooded[0]:
            before = flooded[0]
            await anyio.sleep(0.1)
        assert flooded[0] < 200
        await c.say(type="websocket.disconnect", code=1006)
        async for _ in c.from_app:
            pass

    assert talk(server, lambda: client("/flood"), conversation).error is None


def test_nobody_listening_is_not_sent_and_nothing_was_consumed(talk, client, tmp_path):
    async def conversation(c: Client) -> None:
        pass

    result = talk(open_upstream(f"unix:{tmp_path}/none"), client, conversation)
    assert isinstance(result.error, NotSent)
    assert result.error.consumed is False


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (b"", "reset"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", "malformed"),
        (b"garbage\r\n\r\n", "malformed"),
    ],
)
def test_a_handshake_that_breaks_failed_before_start(talk, raw_server, read_head, client, reply, cause):
    def script(connection, number):
        read_head(connection)
        connection.sendall(reply)

    upstream = open_upstream(f"unix:{raw_server(script).path}")

    async def conversation(c: Client) -> None:
        await c.say(type="websocket.connect")

    result = talk(upstream, client, conversation)
    assert isinstance(result.error, FailedBeforeStart)
    assert result.error.cause == cause


def test_a_silent_handshake_ends_at_the_time_limit(talk, raw_server, client):
    settings = UpstreamSettings(first_byte_timeout=Seconds(0.05))
    server = raw_server(lambda connection, number: connection.recv(65536) and connection.recv(65536))
    upstream = open_upstream(f"unix:{server.path}", settings=settings)

    async def conversation(c: Client) -> None:
        await c.say(type="websocket.connect")

    result = talk(upstream, client, conversation)
    assert isinstance(result.error, FailedBeforeStart)
    assert result.error.cause == "first_byte_timeout"


def test_a_break_after_the_accept_is_aborted(talk, raw_server, read_head, client):
    def script(connection, number):
        protocol = accepting(read_head(connection))
        connection.sendall(b"".join(protocol.data_to_send()))

    upstream = open_upstream(f"unix:{raw_server(script).path}")

    async def conversation(c: Client) -> None:
        assert (await c.connect())["type"] == "websocket.accept"

    assert isinstance(talk(upstream, client, conversation).error, Aborted)


def test_a_message_in_pieces_is_one_and_a_ping_within_it_is_answered(talk, raw_server, read_head, client):
    from websockets.frames import Opcode

    heard: list[Any] = []

    def script(connection, number):
        protocol = accepting(read_head(connection))
        for piece, fin in ((b"", False), (b"he", False), (b"", False), (b"llo", True)):
            if piece == b"" and not heard:
                protocol.send_text(piece, fin)
                protocol.send_ping(b"there?")
                heard.append("asked")
            else:
                protocol.send_continuation(piece, fin)
        protocol.send_text(b"whole")
        protocol.send_close(4000, "done")
        connection.sendall(b"".join(protocol.data_to_send()))
        while data := connection.recv(65536):
            protocol.receive_data(data)
            heard.extend(frame.opcode for frame in protocol.events_received())

    server = raw_server(script)
    upstream = open_upstream(f"unix:{server.path}")

    async def conversation(c: Client) -> None:
        await c.connect()
        said = [await c.hear() for _ in range(3)]
        assert [message.get("text") for message in said] == ["hello", "whole", None]
        assert (said[2]["code"], said[2]["reason"]) == (4000, "done")

    assert talk(upstream, client, conversation).error is None
    server.close()
    assert heard == ["asked", Opcode.PONG, Opcode.CLOSE]


def test_who_asks_for_pongs_and_reads_none_is_cut_off(talk, raw_server, read_head, client):
    def script(connection, number):
        protocol = accepting(read_head(connection))
        connection.sendall(b"".join(protocol.data_to_send()))
        protocol.send_ping(b"x" * 125)
        pings = b"".join(protocol.data_to_send()) * 1000
        for _ in range(200):
            connection.sendall(pings)

    upstream = open_upstream(f"unix:{raw_server(script).path}")

    async def conversation(c: Client) -> None:
        assert (await c.connect())["type"] == "websocket.accept"

    error = talk(upstream, client, conversation).error
    assert isinstance(error, Aborted)
    assert error.cause == "too_large"


def test_a_handshake_field_with_a_line_end_is_refused(talk, server, client):
    async def conversation(c: Client) -> None:
        assert (await c.connect())["code"] == 1008

    assert talk(server, lambda: client(headers=[(b"x-a", b"1\r\nx-b: 2")]), conversation).error is None


def test_both_sides_may_write_more_than_buffers_hold(talk, server, client):
    """An echo that reads nothing while it writes, and a client that reads all the while: it goes on."""
    count, piece = 150, b"x" * 200_000

    async def conversation(c: Client) -> None:
        await c.connect()

        async def speak() -> None:
            for _ in range(count):
                await c.say(type="websocket.receive", bytes=piece)

        async with anyio.create_task_group() as group:
            group.start_soon(speak)
            for _ in range(count):
                assert (await c.hear())["bytes"] == piece
        await c.say(type="websocket.disconnect", code=1000, reason="")

    assert talk(server, lambda: client(), conversation).error is None
