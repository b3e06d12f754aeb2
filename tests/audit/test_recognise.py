"""A call is named from what its cut or packed beginning says, and from nothing that only looks like it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deia_audit.bodies import BodyWatch
from deia_audit.cutjson import closed
from deia_audit.recognise import CHAT, MCP, OPENAI, recognise
from deia_hardening.testing import running

LONG = "x" * 5000
LIMIT = 4096
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def told(kind: str, body: Any, *, headers: Any = (), answer: bytes = b"") -> dict[str, Any]:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = recognise(kind, sent[:LIMIT], headers, b"", lambda data: f"digest of {len(data)}", answer[:LIMIT])
    members: dict[str, Any] = json.loads(b"{" + found.removeprefix(b",") + b"}")
    return members


def beginning(cut: Any, whole: Any) -> bool:
    """Whether `cut` is what is left of `whole` when its end is missing."""
    if isinstance(whole, dict) and isinstance(cut, dict):
        return all(name in whole and beginning(value, whole[name]) for name, value in cut.items())
    if isinstance(whole, list) and isinstance(cut, list):
        return all(beginning(one, other) for one, other in zip(cut, whole, strict=False))
    return bool(cut == whole)


@given(st.dictionaries(st.text(), JSON), st.data())
def test_cut_json_says_less_and_nothing_else(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value).encode()
    at = data.draw(st.integers(0, len(text)))
    whole = closed(text[:at])
    if at == 0:
        assert whole == b""
        return
    assert beginning(msgspec.json.decode(whole), value)
    assert msgspec.json.decode(closed(text)) == value


@given(st.binary(max_size=200))
def test_what_is_no_json_breaks_nothing(text: bytes) -> None:
    for kind in (MCP, OPENAI, CHAT):
        told(kind, text, answer=text)


@pytest.mark.parametrize(
    ("kind", "body", "wanted"),
    [
        # a member counts only where it stands
        (MCP, {"method": "tools/call", "params": {"arguments": {"name": "harmless", "text": LONG}, "name": "pay"}},
         {"tool": {"method": "tools/call"}}),
        (MCP, {"method": "tools/call", "params": {"name": "pay", "arguments": {"name": "harmless", "text": LONG}}},
         {"tool": {"method": "tools/call", "name": "pay"}}),
        (MCP, {"note": {"method": "tools/list"}, "id": 3, "method": "tools/call", "params": {"x": LONG}},
         {"tool": {"method": "tools/call", "call_id": "3"}}),
        (OPENAI, {"metadata": {"model": "small"}, "model": "large", "input": LONG}, {"model": {"name": "large"}}),
        (OPENAI, {"metadata": {"model": "small"}, "input": LONG, "model": "large"}, {}),
        (OPENAI, {"conversation": {"id": "c1"}, "model": "m", "input": LONG},
         {"model": {"name": "m", "conversation": "c1"}}),
        # a batch that is cut
        (MCP, [{"method": "tools/call", "id": 1, "params": {"name": "a"}},
               {"method": "m", "id": 2, "params": {"t": LONG}}],
         {"tool": {"method": "tools/call", "name": "a", "call_id": "1", "also": [{"method": "m", "call_id": "2"}]}}),
        # chat platforms
        (CHAT, {"event": {"type": "message", "text": LONG}, "type": "event_callback"}, {"event": "message"}),
        (CHAT, {"event": {"text": LONG, "type": "message"}, "type": "event_callback"}, {}),
        (CHAT, {"update_id": 7, "message": {"text": LONG}}, {"event": "message"}),
        (CHAT, {"type": 2, "data": {"name": "weather", "options": LONG}}, {"event": "application_command"}),
        (CHAT, {"type": 1, "event": {"type": "APPLICATION_AUTHORIZED"}}, {"event": "APPLICATION_AUTHORIZED"}),
        (CHAT, {"destination": "U1", "events": [{"type": "follow"}, {"type": "message"}]}, {"event": "follow"}),
        (CHAT, urlencode({"token": "t", "command": "/weather", "text": "94070"}).encode(), {"event": "/weather"}),
        (CHAT, urlencode({"payload": json.dumps({"type": "block_actions", "x": LONG})}).encode(),
         {"event": "block_actions"}),
    ],
)  # fmt: skip
def test_a_cut_call_is_named_by_what_stands_in_its_place(kind: str, body: Any, wanted: dict[str, Any]) -> None:
    assert told(kind, body) == wanted


def test_headers_name_what_a_cut_call_has_not_said_yet() -> None:
    body = {"method": "tools/call", "params": {"arguments": {"text": LONG}, "name": "pay"}}
    assert told(MCP, body, headers=[(b"mcp-name", b"pay")])["tool"]["name"] == "pay"
    assert told(CHAT, {"action": "opened"}, headers=[(b"x-github-event", b"issues")]) == {"event": "issues"}


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id":"c1","object":"chat.completion","created":1,"model":"gpt-x","choices":[{"text":"%b' % LONG.encode(),
        b'data: {"id":"c1","choices":[],"model":"gpt-x"}\n\ndata: {"id":"c1"',
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"gpt-x"}}\n\n',
        b'event: response.created\r\ndata: {"response":{"id":"r","model":"gpt-x","instructions":"%b' % LONG.encode(),
    ],
)
def test_a_model_that_a_long_prompt_hides_is_named_by_its_answer(answer: bytes) -> None:
    request = {"messages": [{"role": "user", "content": LONG}], "model": "alias"}
    assert told(OPENAI, request, answer=answer) == {"model": {"name": "gpt-x"}}
    assert told(OPENAI, {"model": "alias", "messages": []}, answer=answer) == {"model": {"name": "alias"}}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_body_is_read_as_what_it_says(encoding: str) -> None:
    said = b"begin" + b"\0" * 1_000_000 + b"end"
    packed = gzip.compress(said) if encoding == "gzip" else zlib.compress(said)
    watch = BodyWatch(b"k" * 32, 16, 16)
    watch.packed([(b"Content-Encoding", encoding.encode())])
    for at in range(0, len(packed), 100):
        watch.feed(packed[at : at + 100])
    assert (watch.first, watch.last) == (said[:16], said[-16:])
    assert (watch.size, watch.seen, watch.stopped) == (len(packed), len(said), False)


def test_a_packed_body_takes_no_more_memory_than_a_plain_one() -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    watch = BodyWatch(None, 4096)
    watch.packed([(b"content-encoding", b"gzip")])
    watch.feed(bomb)
    assert (len(watch.first), watch.seen, watch.stopped) == (4096, 4096, True)
    for encoding in (b"br", b"gzip, br", b"gzip"):
        watch = BodyWatch(None, 4096)
        watch.packed([(b"content-encoding", encoding)])
        watch.feed(b"not packed at all")
        assert (watch.first, watch.stopped) == (b"", True)


@pytest.mark.parametrize(("packing", "outcome"), [("gzip", "failure"), ("br", None)])
async def test_a_packed_answer_tells_its_tools_outcome_or_nothing(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]], packing: str, outcome: str | None
) -> None:
    async def call(request: Request) -> Response:
        await request.body()
        answer = {"id": 1, "result": {"content": [{"text": LONG * 3}], "isError": True}}
        if packing == "br":
            return Response(b"\x1b\x00packed", headers={"content-encoding": "br"})
        return JSONResponse(answer)

    middleware = [Middleware(GZipMiddleware)] if packing == "gzip" else []
    app = Starlette(routes=[Route("/mcp", call, methods=["POST"])], middleware=middleware)
    async with running(app, {"home": str(tmp_path), "audit": {}}) as live:
        body = b'{"id":1,"method":"tools/call","params":{"name":"pay"}}'
        answer = await live.post("/mcp", body, headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == packing
    (tool,) = [one["tool"] for one in read_trail(tmp_path) if "tool" in one]
    assert (tool["name"], tool.get("outcome")) == ("pay", outcome)
