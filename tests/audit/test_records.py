"""Nothing that a client sends makes a record that is no JSON, longer than a line may be, or of a trace that is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_audit.middleware import kept_parts
from deia_audit.outcome import trace_id
from deia_audit.records import Assembler, Ended
from deia_audit.settings import AuditSettings
from deia_hardening.context import ANONYMOUS
from deia_hardening.testing import running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True), (f"01-{TRACE}-00f067aa0ba902b7-01-more", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01", True), (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"01-{TRACE}-00f067aa0ba902b7-01more", False), (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False), (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False), (f"00-{TRACE[:-1]}-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6\ta3ce929d0e0e47\t-00f067aa0ba902b7-01", False), ("", False), ("00", False),
        (f"0\u00e9-{TRACE}-00f067aa0ba902b7-01", False), (f"00-{TRACE}-00f067aa0ba902b7-0x", False),
    ],
)  # fmt: skip
def test_a_trace_is_taken_from_a_valid_traceparent_only(header: str, valid: bool) -> None:
    assert trace_id(header.encode("latin-1")) == (TRACE.encode() if valid else None)


RAW = st.one_of(
    st.binary(max_size=80),
    st.text(" \t0af-", min_size=55, max_size=55).map(str.encode),
    st.tuples(st.text(" \t0a1f", min_size=32, max_size=32)).map(
        lambda one: f"00-{one[0]}-00f067aa0ba902b7-01".encode()
    ),
)
NAMES = st.sampled_from([b"traceparent", b"deia-reason", b"user-agent", b"x-team", b"cookie"])


SHORT = st.text(max_size=40)


@given(st.lists(st.tuples(NAMES, RAW), max_size=6), SHORT, SHORT, st.binary(max_size=40))
def test_nothing_that_a_client_sends_makes_a_record_unreadable(
    headers: list[tuple[bytes, bytes]], path: str, method: str, query: bytes
) -> None:
    scope = {"type": "http", "path": path, "method": method, "headers": headers, "query_string": query}
    context: Any = SimpleNamespace(
        scope={**scope, "client": (path, 1)}, headers=headers, received=0.0, mode="FULL", version="", bot="",
        actor=ANONYMOUS, error=None, route=path, _route=path, _reason=None, _claims={path: method}, _id=None,
        revision=SimpleNamespace(template=None), status=200, started=1.0, ended=0.0, bytes_out=0, complete=True,
    )  # fmt: skip
    context.exchange = context
    kept = kept_parts(scope, AuditSettings(headers=("X-Team",), query=("a",)))
    record = Assembler().http(context, 5, "result", kept)
    record._inlet = SimpleNamespace(_fitted=lambda body: body)  # type: ignore[assignment]
    Ended._encode([record])
    line = record._body
    assert line.isascii() and not any(byte < 0x20 for byte in line)
    assert json.loads(b"{" + line + b"}")["http"]["path"] is not None


@pytest.mark.parametrize("code", [4001, "4001", 'x"\n', 4001.5, True, None])
async def test_no_close_code_of_an_app_makes_a_record_unreadable(tmp_path: Path, read_trail: Any, code: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": code})

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "root_path": "", "scheme": "ws",
        "asgi": {"version": "3.0"}, "http_version": "1.1", "server": ("h", 1), "client": ("1.2.3.4", 5), "state": {},
    }  # fmt: skip
    async with running(app, {"home": str(tmp_path), "audit": {}}) as live:
        await live.app(scope, receive, send)
    (closed,) = [one for one in read_trail(tmp_path) if one.get("kind") == "http" and one["stage"] == "end"]
    assert closed["http"]["close"] == (code if isinstance(code, (int, str)) else str(code) if code else 1000)
