"""A name with several addresses, and a name that can't be looked up for a while: who is there still answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import NotSent, UpstreamSettings, addresses, open_upstream
from deia_hardening.upstream.addresses import Address, AddressRefused

from .test_exchange import OK


@pytest.fixture
def silent() -> Iterator[Address]:
    """An address where connections are neither taken nor refused: a listener whose queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            while True:
                one = socket.socket()
                waiting.append(one)
                one.settimeout(0.3)
                try:
                    one.connect(listener.getsockname())
                except TimeoutError:
                    break
            yield Address(socket.AF_INET, listener.getsockname())
        finally:
            for one in waiting:
                one.close()


@pytest.fixture
def answering(answers: Any) -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answers(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), close=True)(connection, 0)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address(socket.AF_INET, listener.getsockname())
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_an_address_that_is_silent_leaves_time_for_the_next(run, call, silent, answering, monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *asked: [silent, answering])

    async def main():
        upstream = open_upstream("http://bot.example", settings=UpstreamSettings(connect_timeout=Seconds(2)))
        result = await call(upstream)
        assert (result.status, result.body) == (200, b"ok")

    run(main)


def test_only_silent_addresses_are_a_connect_timeout(run, call, silent, monkeypatch):
    monkeypatch.setattr(addresses, "resolve", lambda *asked: [silent, silent])

    async def main():
        upstream = open_upstream("http://bot.example", settings=UpstreamSettings(connect_timeout=Seconds(0.2)))
        result = await call(upstream)
        assert isinstance(result.error, NotSent)
        assert result.error.cause == "connect_timeout"

    run(main)


@pytest.mark.parametrize(
    ("later", "cause"),
    [(socket.gaierror(-3, "no name server answers"), ""), (AddressRefused("it leads to 169.254.169.254"), "address")],
)
def test_a_name_that_is_not_found_again_keeps_its_addresses_unless_they_are_refused(
    run, call, answering, monkeypatch, later, cause
):
    asked: list[Any] = []

    def resolve(*args: Any) -> list[Address]:
        asked.append(args)
        if len(asked) > 1:
            raise later
        return [answering]

    monkeypatch.setattr(addresses, "resolve", resolve)

    async def main():
        upstream = open_upstream("http://bot.example", settings=UpstreamSettings(resolve_every=Seconds(0.000001)))
        assert (await call(upstream)).status == 200
        second = await call(upstream)
        if cause:
            assert isinstance(second.error, NotSent)
            assert second.error.cause == cause
        else:
            assert (second.error, second.status) == (None, 200)

    run(main)
    assert len(asked) >= 2
