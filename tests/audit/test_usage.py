"""What a model's call used is read from its answer's ends, whole or streamed, and never from the model's own text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deia_audit.recognise import MCP, OPENAI, recognise
from deia_audit.usage import usage
from deia_hardening.testing import running

CHAT = b'{"id":"c","choices":[{"message":{"content":"%b"}}],"usage":{"prompt_tokens":19,"completion_tokens":10}}'
RESPONSES = b'{"usage": {"input_tokens": 36, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 87}}'
STREAM = (
    b'data: {"choices":[{"delta":{"content":"Hi"}}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}}\n\ndata: [DONE]\n\n'
)
ANTHROPIC = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":15}}\n\n',
)


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        (CHAT % b"Hi", CHAT % b"Hi", {"tokens_in": 19, "tokens_out": 10}),
        (b"", RESPONSES, {"tokens_in": 36, "tokens_out": 87}),
        (STREAM[:40], STREAM[40:], {"tokens_in": 19, "tokens_out": 10}),
        (*ANTHROPIC, {"tokens_in": 25, "tokens_out": 15}),
        (b"", b'{"prompt_tokens":1,"cost":0.0042}', {"tokens_in": 1, "cost": 0.0042}),
        (b"", CHAT % b'\\"prompt_tokens\\":999999', {"tokens_in": 19, "tokens_out": 10}),
        (b"", RESPONSES[:-1] + b', "metadata": {"input_tokens": "9"}}', {"tokens_in": 36, "tokens_out": 87}),
        (b"", b'{"error":"no"}', {}),
        (b"", b'"prompt_tokens":' + b"9" * 40, {}),
        (b"", b'"prompt_tokens":{"x":1}', {}),
    ],
)  # fmt: skip
def test_tokens_are_read_from_an_answers_ends(first: bytes, last: bytes, wanted: dict[str, Any]) -> None:
    assert json.loads(b"{" + usage(first, last) + b"}") == wanted


def test_a_conversation_is_named_by_text_or_object() -> None:
    for told in (b'"conv_1"', b'{"id":"conv_1"}'):
        found = recognise(OPENAI, b'{"model":"gpt-x","conversation":%b}' % told, [])
        assert json.loads(b"{" + found[1:] + b"}")["model"] == {"name": "gpt-x", "conversation": "conv_1"}


def test_a_tools_arguments_are_kept_as_a_keyed_digest() -> None:
    body = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"pay","arguments":{"to":"bob"}}}'
    found = recognise(MCP, body, [(b"mcp-session-id", b"s1")], b"", lambda data: f"digest of {len(data)}")
    tool = json.loads(b"{" + found[1:] + b"}")["tool"]
    assert tool == {"name": "pay", "method": "tools/call", "call_id": "7", "args": "digest of 12", "conversation": "s1"}
    assert b"bob" not in found


async def test_a_models_call_is_recorded_with_its_tokens(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]]
) -> None:
    async def complete(request: Request) -> Response:
        if (await request.json()).get("stream"):

            async def chunks() -> AsyncIterator[bytes]:
                for at in range(0, len(STREAM), 7):
                    yield STREAM[at : at + 7]

            return StreamingResponse(chunks(), media_type="text/event-stream")
        return JSONResponse(json.loads(CHAT % b"Hi"))

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    async with running(app, {"home": str(tmp_path), "audit": {}}) as live:
        for stream in (False, True):
            answer = await live.post("/v1/chat/completions", json.dumps({"model": "gpt-x", "stream": stream}).encode())
            assert answer.status == 200
            if stream:
                assert answer.body == STREAM
    models = [one["model"] for one in read_trail(tmp_path) if "model" in one]
    assert [(one["name"], one["tokens_in"], one["tokens_out"]) for one in models] == [("gpt-x", 19, 10)] * 2
    assert all(one["first_ms"] > 0 for one in models)
