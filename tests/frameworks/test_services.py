"""Services as people write them, behind a real server: every byte that a client gets is the same when hardened."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import pytest

SECRET = b"signing secret"
Pair = Callable[..., tuple[Any, Any]]


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: t", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def both(pair: tuple[Any, Any], request: bytes, *parts: bytes) -> tuple[str, list[str], bytes]:
    """Ask both; what they answered, which must be equal."""
    bare, hardened = pair
    expected = bare.raw(request, *parts)
    assert hardened.raw(request, *parts) == expected
    return expected


def test_a_webhook_verifies_its_signature_over_the_raw_body(served: Pair) -> None:
    pair = served("webhook")
    body = '{ "challenge" : "grüße",\r\n "n": 1.0e2}'.encode()
    signature = "v0=" + hmac.new(SECRET, b"v0:17:" + body, hashlib.sha256).hexdigest()
    signed = ("X-Request-Timestamp: 17", f"X-Signature: {signature}")
    status, _, answer = both(pair, post("/hook", body, *signed))
    assert (status, b"challenge" in answer) == ("HTTP/1.1 200 OK", True)
    assert both(pair, post("/hook", body + b" ", *signed))[0].startswith("HTTP/1.1 401")
    chunked = post("/hook", b"", *signed).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:9], body[9:])]
    assert both(pair, chunked, *parts, b"0\r\n\r\n")[0].startswith("HTTP/1.1 200")
    assert both(pair, b"GET /hook HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")[0].startswith("HTTP/1.1 405")
    assert both(pair, b"GET /nothing HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")[0].startswith("HTTP/1.1 404")


def test_a_gateway_streams_a_models_events_on(served: Pair) -> None:
    pytest.importorskip("httpx")
    pair = served("gateway")
    asked = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    status, headers, events = both(pair, post("/v1/chat/completions", asked, "Content-Type: application/json"))
    assert status == "HTTP/1.1 200 OK"
    assert any(line.startswith("content-type: text/event-stream") for line in headers)
    assert events.count(b"data: ") == 6
    assert b"[DONE]" in events
    whole = asked.replace(b"true", b"false")
    assert b"chatcmpl-1" in both(pair, post("/v1/chat/completions", whole, "Content-Type: application/json"))[2]
    assert both(pair, post("/v1/chat/completions", b"{}"))[0].startswith("HTTP/1.1 400")


def test_server_sent_events_of_sse_starlette(served: Pair) -> None:
    pytest.importorskip("sse_starlette")
    pair = served("sse")
    status, headers, events = both(pair, b"GET /events HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    assert "x-own: 1" in headers
    assert events.count(b"data: ") == 4
