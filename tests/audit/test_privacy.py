"""What is kept of people and of bodies: only what the settings list.

Erased subjects stay erased; hashes still verify.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from deia_audit import AuditLogger
from deia_audit.layout import Layout
from deia_audit.privacy import ERASED, Subjects
from deia_audit.query.terms import values_of
from deia_audit.recognise import CHAT, MCP, OPENAI, mcp_outcome, recognise
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening import current
from deia_hardening.context import ANONYMOUS, Actor
from deia_hardening.runtime import runtime
from deia_hardening.testing import running


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse((await request.body())[::-1])


async def stream(request: Request) -> StreamingResponse:
    async def parts() -> Any:
        for number in range(3):
            yield b"part %d " % number

    return StreamingResponse(parts())


def app() -> Starlette:
    return Starlette(
        routes=[Route("/echo", echo, methods=["POST"]), Route("/mcp", echo, methods=["POST"]), Route("/stream", stream)]
    )


def calls(home: Path) -> list[dict[str, Any]]:
    lines = (home / "logs" / "audit-trail.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    return [one for one in map(json.loads, lines) if one.get("kind") == "http"]


def serve(home: Path, requests: list[tuple[str, str, bytes, dict[str, Any]]], **audit: Any) -> None:
    async def work() -> None:
        async with running(app(), {"home": str(home), "audit": audit}) as service:
            for method, path, body, options in requests:
                assert (await service.call(method, path, body, **options)).status == 200

    asyncio.run(work())


def test_bodies_are_digests_under_a_key_and_streams_pass_untouched(tmp_path: Path) -> None:
    serve(tmp_path, [("POST", "/echo", b"secret prompt", {}), ("GET", "/stream", b"", {})], level="request+response")
    posted, streamed = calls(tmp_path)
    assert posted["request_body"]["size"] == posted["response_body"]["size"] == 13
    digests = posted["http"]["digest"]
    assert all(digests[side].startswith("hmac-sha256:") for side in ("request", "response"))
    assert digests["request"] != digests["response"]
    assert streamed["response_body"]["size"] == 21
    assert b"secret" not in (tmp_path / "logs" / "audit-trail.jsonl").read_bytes()


def test_body_text_is_capped_and_said_to_be_cut(tmp_path: Path) -> None:
    options = {"level": "request", "body_text": True, "body_limit": "8B"}
    serve(tmp_path, [("POST", "/echo", b"0123456789", {})], **options)
    (posted,) = calls(tmp_path)
    assert posted["request_body"]["text"] == "01234567"
    assert posted["request_body"]["cut"] is True
    assert "response_body" not in posted


def test_only_listed_headers_and_parameters_are_kept(tmp_path: Path) -> None:
    scope = {
        "headers": [(b"authorization", b"Bearer x-secret"), (b"x-team", b"blue"), (b"x-team", b"red")],
        "query_string": b"page=2&token=x-secret&x-secret&page=3",
    }
    serve(tmp_path, [("GET", "/stream", b"", scope)])
    serve(tmp_path, [("GET", "/stream", b"", scope)], headers=["X-Team"], query=["page"])
    plain, listed = calls(tmp_path)
    assert "headers" not in plain
    assert "query" not in plain
    assert plain["redacted"] == ["query"]
    assert listed["headers"] == {"X-Team": "blue, red"}
    assert listed["query"] == {"page": "2, 3"}
    assert listed["redacted"] == ["query", "query.token"]
    assert b"x-secret" not in (tmp_path / "logs" / "audit-trail.jsonl").read_bytes()


def test_an_mcp_call_is_named(tmp_path: Path) -> None:
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "search", "arguments": {}}}
    )
    serve(tmp_path, [("POST", "/mcp", body.encode(), {})])
    (call,) = calls(tmp_path)
    assert call["tool"].pop("args").startswith("hmac-sha256:")
    assert call["tool"] == {"name": "search", "method": "tools/call", "call_id": "7", "outcome": "success"}
    assert "request_body" not in call


def test_a_batch_of_mcp_calls_names_each(tmp_path: Path) -> None:
    names = ["search", "pay", "mail"]
    body = [{"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": {"name": name}} for name in names]
    serve(tmp_path, [("POST", "/mcp", json.dumps(body).encode(), {})])
    (call,) = calls(tmp_path)
    assert call["tool"]["calls"] == 3
    assert [call["tool"]["name"], *(one["name"] for one in call["tool"]["also"])] == names
    assert values_of(call, "tool") == names


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [
        (200, b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}', "success"),
        (200, b'data: {"jsonrpc": "2.0", "result": {"content": [], "isError": true}}\n\n', "failure"),
        (200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no such tool"}}', "failure"),
        (200, b'[{"id":1,"result":{}},{"id":2,"error":{"code":-1}}]', "failure"),
        (200, b'[{"id":1,"result":{}},{"id":2,"result":{"isError":false}}]', "success"),
        (200, b'event: message\r\ndata: {"method":"notifications/progress"}\r\n\r\ndata: {"id":1,\r\n'
              b'data: "result":{"isError":true}}\r\n\r\n', "failure"),
        (200, b'{"id":1,"result":{"structuredContent":{"isError":true,"error":{"a":1}},"isError":false}}', "success"),
        (200, b'{"id":1,"result":{"content":[{"text":"%b"}],"isError":true}}' % (b"x" * 5000), "failure"),
        (200, b'{"id":1,"result":{"content":[{"text":"%b"}],"isError":false}}' % (b"x" * 5000), "success"),
        (200, b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"text":"{\\"isError\\":true}"}]}}', "success"),
        (404, b'{"detail":"no session"}', "failure"),
    ],
)  # fmt: skip
def test_a_tools_outcome_is_read_from_its_answer(status: int, answer: bytes, outcome: str) -> None:
    told = mcp_outcome(answer[:1000], answer[-1000:], len(answer), status)
    assert told == b'"outcome":"%b"' % outcome.encode()


def test_digests_of_what_people_send_end_with_their_keys(tmp_path: Path) -> None:
    """Whatever `actor_ids` says: the same text of two people has two digests, and none that an erasure leaves open."""

    async def work() -> None:
        async with running(app(), {"home": str(tmp_path), "audit": {}}) as service:
            logger = current(AuditLogger, app=service.app)
            found = []
            for name in ("alice", "bob"):
                actor = Actor("user", name, "test")
                await logger.prepare(actor)
                found.append(logger.digest_for(actor)(b"yes"))
            found.append(logger.digest_for(ANONYMOUS)(b"yes"))
            assert len(set(found)) == 3
            await runtime().blocking(logger.subjects.erase, "alice")
            assert logger.digest_for(Actor("user", "alice", "test"))(b"yes") == ERASED
            assert logger.body_key(Actor("user", "alice", "test")) is None

    asyncio.run(work())


@pytest.mark.parametrize(
    ("kind", "body", "wanted"),
    [
        (MCP, b'{"method": "tools/list", "id": "a"}', {"tool": {"method": "tools/list", "call_id": "a"}}),
        (MCP, b'{"method":"m","params":{"name":"x","arguments":{"q":"cut', {"tool": {"name": "x", "method": "m"}}),
        (MCP, b"not json", {}),
        (OPENAI, b'{"model":"gpt-5","messages":[{"role":"us', {"model": {"name": "gpt-5"}}),
        (OPENAI, b'{"model":"m","conversation":"c1"}', {"model": {"name": "m", "conversation": "c1"}}),
        (OPENAI, b'{"model":7}', {}),
        (CHAT, b'{"type":"event_callback","event":{"type":"message"}}', {"event": "message"}),
        (CHAT, b'{"type":"url_verification","challenge":"x"}', {"event": "url_verification"}),
        (CHAT, b'{"update_id":7, "callback_query":{"id":"1"}}', {"event": "callback_query"}),
        (CHAT, b'{"update_id":7,"message":{"text":"cut', {"event": "message"}),
        (CHAT, b'{"type":2,"data":{}}', {"event": "application_command"}),
        (CHAT, b'{"type":77,"data":{}}', {}),
        (CHAT, b"", {}),
    ],
)  # fmt: skip
def test_known_protocols_are_named_from_their_first_bytes(kind: str, body: bytes, wanted: dict[str, Any]) -> None:
    found = recognise(kind, body, [])
    assert json.loads(b"{" + found.removeprefix(b",") + b"}") == wanted


def test_mcp_headers_name_a_call_whose_body_says_nothing() -> None:
    found = recognise(MCP, b"", [(b"mcp-method", b"tools/call"), (b"mcp-name", b"search")])
    assert json.loads(b"{" + found[1:] + b"}") == {"tool": {"name": "search", "method": "tools/call"}}


def subjects(home: Path) -> Subjects:
    layout = Layout.of(home)
    return Subjects(layout.keys, layout.evidence)


def test_an_erased_subject_can_not_be_read_and_stays_erased_after_a_restore(tmp_path: Path) -> None:
    one = subjects(tmp_path)
    text = one.encrypt("alice")
    assert text == one.encrypt("alice") == subjects(tmp_path).encrypt("alice")
    assert one.decrypt(text) == "alice"
    assert "alice" not in text
    shutil.copytree(tmp_path / "keys", tmp_path / "kept")
    assert one.erase("alice")
    assert one.decrypt(text) == ERASED
    assert one.encrypt("alice") == ERASED
    assert one.pseudonym("alice") == subjects(tmp_path).pseudonym("alice")

    shutil.copytree(tmp_path / "kept", tmp_path / "keys", dirs_exist_ok=True)
    restored = subjects(tmp_path)
    assert restored.decrypt(text) == ERASED  # before any start has destroyed the key that came back
    assert restored.reapply() == 1
    assert restored.decrypt(text) == ERASED


def test_a_trail_with_encrypted_actors_verifies_after_an_erasure(tmp_path: Path) -> None:
    async def work() -> None:
        settings = {"home": str(tmp_path), "audit": {"actor_ids": "encrypted", "client_address": "none"}}
        async with running(app(), settings) as service:
            logger = current(AuditLogger, app=service.app)
            actor = Actor("user", "alice", "test")
            await logger.meet(actor)
            logger.record("bot.assigned", actor=actor)
            await service.get("/stream")
            await runtime().blocking(logger.subjects.erase, "alice")

    asyncio.run(work())
    text = (tmp_path / "logs" / "audit-trail.jsonl").read_text()
    assert "alice" not in text
    assert '"src":{}' in text
    assert verify(Layout.of(tmp_path)).verdict is Verdict.OK_LOCAL_ONLY


def test_what_one_worker_erased_leaves_the_memory_of_the_others(tmp_path: Path) -> None:
    one, other = subjects(tmp_path), subjects(tmp_path)
    text = other.encrypt("alice")
    digest = other.digest("alice", b"a prompt")
    bob = other.encrypt("bob")
    assert not other.forget_erased()
    assert one.erase("alice")
    assert other.forget_erased() and not other.forget_erased()
    assert not other.knows("alice")
    assert other.encrypt("alice") == other.hide("alice", "x") == other.digest("alice", b"a prompt") == ERASED
    assert other.decrypt(text) == ERASED and digest != ERASED
    assert other.encrypt("bob") == bob


def test_a_running_service_drops_what_another_process_erased_with_its_next_checkpoint(tmp_path: Path) -> None:
    async def work() -> None:
        settings = {
            "home": str(tmp_path),
            "audit": {"actor_ids": "encrypted", "client_address": "none", "checkpoint_interval": "100ms"},
        }
        async with running(app(), settings) as service:
            logger = current(AuditLogger, app=service.app)
            actor = Actor("user", "alice", "test")
            await logger.meet(actor)
            logger.record("bot.assigned", actor=actor)
            assert logger.assembler.knows(actor)
            await runtime().blocking(subjects(tmp_path).erase, "alice")
            for _ in range(500):
                logger.record("bot.idle")
                if not logger.assembler.knows(actor):
                    break
                await asyncio.sleep(0.01)
            assert not logger.assembler.knows(actor) and not logger.subjects.knows("alice")
            await logger.meet(actor)
            assert ERASED in logger.assembler.actor(actor)

    asyncio.run(work())


def test_no_worker_uses_the_key_of_a_subject_that_another_has_just_erased(tmp_path: Path) -> None:
    """At once, not with its next checkpoint, which is a minute away here."""

    async def work() -> None:
        settings = {
            "home": str(tmp_path),
            "audit": {"actor_ids": "encrypted", "client_address": "none", "checkpoint_interval": "1m"},
        }
        async with running(app(), settings) as one, running(app(), settings) as other:
            erasing, idle = (current(AuditLogger, app=each.app) for each in (one, other))
            alice, bob = Actor("user", "alice", "test"), Actor("user", "bob", "test")
            for actor in (alice, bob):
                await idle.meet(actor)
            assert ERASED not in idle.assembler.actor(alice)
            digest = idle.digest_for(alice)
            assert await runtime().blocking(erasing.subjects.erase, "alice")
            await erasing.tell_erased(erasing.subjects.handle("alice"))

            def use() -> list[Any]:  # in a thread: the keys that are left are read again
                told = [idle.record("bot.asked", actor=who, private="some words") for who in (alice, bob)]
                assert ERASED in idle.assembler.actor(alice) and ERASED not in idle.assembler.actor(bob)
                assert digest(b"a prompt") == ERASED
                return told

            receipts = await asyncio.to_thread(use)
            for receipt in receipts:
                await receipt.durable()
        lines = (tmp_path / "logs" / "audit-trail.jsonl").read_text().rpartition("\n")[0].splitlines()
        asked = [one for line in lines if (one := json.loads(line)).get("action") == "bot.asked"]
        assert [one["private"] == ERASED for one in asked] == [True, False]
        assert [one["actor"]["id"] == ERASED for one in asked] == [True, False]

    asyncio.run(work())
