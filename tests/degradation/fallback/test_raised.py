"""What the exceptions of real client libraries say: their status, and whether anything was sent."""

from __future__ import annotations

import socket
import urllib.error

import httpx
import pytest

from deia_degradation.fallback.raised import not_sent, status_of


def raised_from(error, cause):
    error.__cause__ = cause
    return error


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def test_a_refused_connection_of_a_real_client_was_not_sent():
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.post(f"http://127.0.0.1:{free_port()}/", content=b"x")
    assert not_sent(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectTimeout("t"), True),
        (httpx.PoolTimeout("t"), True),
        (raised_from(RuntimeError("APIConnectionError"), httpx.ConnectError("c")), True),
        (socket.gaierror("no such name"), True),
        (ExceptionGroup("of a task group", [httpx.ConnectError("c")]), True),
        (httpx.ReadTimeout("t"), False),
        (httpx.WriteError("w"), False),
        (httpx.RemoteProtocolError("r"), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
        (ValueError("x"), False),
        (None, False),
    ],
)
def test_whether_anything_was_sent(error, expected):
    assert not_sent(error) is expected


def test_an_earlier_attempt_that_was_refused_says_nothing_of_the_last():
    try:
        try:
            raise ConnectionRefusedError
        except ConnectionRefusedError:
            raise httpx.ReadTimeout("the second one was sent")
    except httpx.ReadTimeout as error:
        assert not not_sent(error)


def test_a_chain_without_end_ends():
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert not not_sent(one)


class Carrying(Exception):
    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.HTTPStatusError("x", request=None, response=httpx.Response(429, headers={"retry-after": "7"})), 429),
        (Carrying(status_code=529), 529),
        (Carrying(status=503), 503),
        (Carrying(code=429), 429),
        (urllib.error.HTTPError("http://x", 500, "x", {}, None), 500),
        (Carrying(code="rate_limit_exceeded", status_code=429), 429),
        (ExceptionGroup("of a task group", [Carrying(status_code=429)]), 429),
        (ExceptionGroup("of two", [Carrying(status_code=429), ValueError()]), None),
        (Carrying(code=7), None),
        (ValueError("x"), None),
    ],
)
def test_the_status(error, status):
    assert status_of(error)[0] == status


def test_the_headers():
    error = httpx.HTTPStatusError("x", request=None, response=httpx.Response(429, headers={"Retry-After": "7"}))
    assert (b"retry-after", b"7") in status_of(error)[1]
    assert status_of(Carrying(headers=5))[1] == []
