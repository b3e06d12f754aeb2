"""Ending one stream: the app sees its client leave, as it would at the end of the process; nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from deia_hardening import streams
from deia_hardening.exchange import Exchange

BOTH = pytest.mark.parametrize("backend", ["asyncio", "trio"])
START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(autouse=True)
def armed() -> Iterator[None]:
    who = object()
    streams.arm(who)
    yield
    streams.disarm(who)


class Server:
    """Gives what it was told to, then nothing; keeps what it was sent."""

    def __init__(self, *given: dict[str, Any]) -> None:
        self.given = list(given)
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.given:
            await anyio.sleep_forever()
        return self.given.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@BOTH
def test_one_that_waits_for_its_client_sees_it_leave_and_another_goes_on(backend: str) -> None:
    async def main() -> None:
        body = {"type": "http.request", "body": b"", "more_body": False}
        one, other = (Exchange(server.receive, server.send) for server in (Server(body), Server(body)))
        seen: dict[Exchange, Any] = {}

        async def listen(exchange: Exchange) -> None:
            await exchange.receive()
            seen[exchange] = await exchange.receive()

        async with anyio.create_task_group() as group:
            group.start_soon(listen, one)
            group.start_soon(listen, other)
            await anyio.wait_all_tasks_blocked()
            one.dismiss("enough")
            await anyio.wait_all_tasks_blocked()
            assert seen == {one: {"type": "http.disconnect"}}
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)


async def test_one_that_only_sends_is_told_by_an_error_but_may_end() -> None:
    server = Server()
    exchange = Exchange(server.receive, server.send)
    await exchange.send(dict(START))
    exchange.dismiss("enough")
    with pytest.raises(OSError, match="enough"):
        exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})
    assert exchange.complete
    assert len(server.sent) == 2


@BOTH
def test_one_that_is_known_beforehand_is_reached_while_its_body_still_comes(backend: str) -> None:
    async def main() -> None:
        server = Server({"type": "http.request", "body": b"part", "more_body": True})
        exchange = Exchange(server.receive, server.send)
        exchange.lasts()
        seen: list[Any] = []

        async def listen() -> None:
            seen.append(await exchange.receive())
            seen.append(await exchange.receive())

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            exchange.dismiss("enough")
        assert seen[1] == {"type": "http.disconnect"}

    anyio.run(main, backend=backend)


async def test_a_websocket_is_closed_with_1012_and_a_handshake_is_not_taken_up_any_more() -> None:
    server = Server({"type": "websocket.connect"})
    exchange = Exchange(server.receive, server.send)
    await exchange.receive()
    await exchange.send({"type": "websocket.accept"})
    exchange.dismiss("enough")
    with pytest.raises(OSError, match="enough"):
        exchange.send({"type": "websocket.send", "text": "more"})
    assert await exchange.receive() == {"type": "websocket.disconnect", "code": 1012, "reason": "enough"}
    assert server.sent[-1] == {"type": "websocket.close", "code": 1012, "reason": "enough"}

    early = Exchange(Server({"type": "websocket.connect"}).receive, server.send)
    await early.receive()
    early.dismiss("enough")
    with pytest.raises(OSError, match="enough"):
        early.send({"type": "websocket.accept"})


async def test_an_answer_that_starts_after_the_request_is_over_tells_nobody() -> None:
    server = Server()
    exchange = Exchange(server.receive, server.send)
    told: list[Exchange] = []
    exchange.on_start(told.append)
    exchange.end()
    await exchange.send(dict(START))
    assert told == []


def test_it_stays_armed_until_the_last_who_ends_streams_is_gone() -> None:
    one, two = object(), object()
    streams.arm(one)
    streams.arm(two)
    streams.disarm(one)
    assert streams.armed
