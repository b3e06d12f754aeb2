"""A rollout with traffic: what stays where it began (sessions, overrides, streams, claims)."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from deia_hardening.settings import Seconds
from deia_hardening.testing import ASGIRecorder, http_scope, websocket_scope
from deia_hardening.types import Receive, Scope, Send
from deia_migration import JudgePlan, Limits

from .test_traffic import begin, user


async def test_sessions_stay_with_the_version_that_issued_them_whatever_the_weight(pair: Any, until: Any) -> None:
    """As the Streamable HTTP transport of MCP: an id in the first answer, in each request from then on."""
    for service in (pair.old, pair.new):
        known: set[bytes] = set()

        async def behave(
            scope: Scope, receive: Receive, send: Send, service: Any = service, known: Any = known
        ) -> None:
            session = dict(scope["headers"]).get(b"mcp-session-id")
            headers = []
            status = 200
            if session is None:
                session = f"{service.name}-{len(known)}".encode()
                known.add(session)
                headers = [(b"mcp-session-id", session)]
            elif session not in known:
                status = 404
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": service.name.encode()})

        service.behaviour = behave
    async with pair.up() as live:
        sessions = [(await live.post("/mcp")).headers["mcp-session-id"] for _ in range(20)]  # before the rollout
        manager = await begin(live, until, "30%")
        sessions += [(await live.post("/mcp", **user(number))).headers["mcp-session-id"] for number in range(100)]
        assert any(session.startswith("new") for session in sessions)
        for weight in (0.7, 0.2, 0.9, 0.0, 1.0):
            manager._router.set_weight(weight)
            for session in sessions:
                answer = await live.post("/mcp", headers=[(b"mcp-session-id", session.encode())])
                assert answer.status == 200
                assert session.startswith(answer.body.decode())


async def test_a_version_is_kept_for_its_sessions_until_they_end(pair: Any, until: Any) -> None:
    pair.new.headers = [(b"mcp-session-id", b"s-1")]
    async with pair.up() as live:
        manager = await begin(live, until, "100%")
        assert (await live.post("/mcp")).headers["mcp-session-id"] == "s-1"
        await manager.rollback()
        await asyncio.sleep(0.05)
        assert manager.status().phase == "rolling-back"
        session = [(b"mcp-session-id", b"s-1")]
        assert (await live.post("/mcp", headers=session)).body == b"new"
        assert (await live.post("/mcp")).body == b"old"
        assert (await live.call("DELETE", "/mcp", headers=session)).status == 200
        await until(lambda: manager.status().phase == "rolled-back")


async def test_ids_that_a_client_makes_up_are_bound_before_the_rollout_begins(pair: Any, until: Any) -> None:
    async with pair.up(sessions=["client:query:session_hash"]) as live:
        for number in range(20):
            assert (await live.get("/queue", query=f"session_hash={number}")).body == b"old"
        await begin(live, until, "90%")
        for number in range(20):
            assert (await live.get("/queue", query=f"session_hash={number}")).body == b"old"


async def somebody_on_old(live: Any) -> list[tuple[bytes, bytes]]:
    """The headers of a user whom the rollout's salt leaves on the old version."""
    for number in range(10):
        if (await live.post("/", **user(number))).body == b"old":
            return list(user(number)["headers"])
    raise AssertionError("ten users in a row are on new at 1%")


async def test_an_override_needs_the_secret_and_stays_out_of_the_statistics(pair: Any, until: Any) -> None:
    async with pair.up(override={"secret": "letmein"}) as live:
        manager = await begin(live, until, "1%", judge=JudgePlan())
        ann = await somebody_on_old(live)
        await asyncio.sleep(0.05)
        before = manager.status().requests["new"]

        async def ask(value: bytes) -> bytes:
            return bytes((await live.post("/", headers=[*ann, (b"x-deia-version", value)])).body)

        assert await ask(b"letmein:new") == b"new"
        assert await ask(b"letmein:v2") == b"new"
        assert await ask(b"letmein:old") == b"old"
        assert await ask(b"new") == b"old"
        assert await ask(b"letmeout:new") == b"old"
        await asyncio.sleep(0.05)
        assert manager.status().requests["new"] == before


async def test_without_secret_or_role_nobody_overrides(pair: Any, until: Any) -> None:
    async with pair.up() as live:
        await begin(live, until, "1%")
        answer = await live.post("/", headers=[*await somebody_on_old(live), (b"x-deia-version", b"new")])
        assert answer.body == b"old"


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
    await anyio.sleep_forever()


async def test_a_stream_stays_where_it_began_and_ends_at_the_deadline(pair: Any, until: Any) -> None:
    pair.new.behaviour = endless
    async with pair.up() as live:
        manager = await begin(live, until, "100%", limits=Limits(drain=Seconds("150ms")))
        stream = ASGIRecorder(live.app, http_scope("GET", "/events"), hang=True)
        socket = ASGIRecorder(live.app, websocket_scope("/ws"), {"type": "websocket.connect"}, hang=True)
        async with anyio.create_task_group() as group:
            group.start_soon(live.app, stream.scope, stream.receive, stream.send)
            group.start_soon(live.app, socket.scope, socket.receive, socket.send)
            await until(lambda: len(stream.sent) == 2 and socket.sent, "both have begun")
            await manager.rollback(reason="drain it")
            assert (await live.post("/")).body == b"old"
            await until(lambda: manager.status().phase == "rolled-back", "the drain")
        assert socket.sent[-1]["type"] == "websocket.close"
        assert socket.sent[-1]["code"] == 1012
        assert stream.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_cut_ends_streams_at_once(pair: Any, until: Any) -> None:
    pair.new.behaviour = endless
    async with pair.up() as live:
        manager = await begin(live, until, "100%")
        socket = ASGIRecorder(live.app, websocket_scope("/ws"), {"type": "websocket.connect"}, hang=True)
        async with anyio.create_task_group() as group:
            group.start_soon(live.app, socket.scope, socket.receive, socket.send)
            await until(lambda: socket.sent, "it has begun")
            await manager.rollback(cut=True)
        assert socket.sent[-1]["code"] == 1012


async def test_a_weight_change_does_not_touch_what_is_in_progress(pair: Any, until: Any) -> None:
    release = anyio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"old, in the end"})

    pair.old.behaviour = slow
    async with pair.up() as live:
        found: list[bytes] = []

        async def ask() -> None:
            found.append((await live.post("/")).body)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await asyncio.sleep(0.01)
            manager = await begin(live, until, "100%")
            await manager.promote(full=True)
            await asyncio.sleep(0.05)
            assert manager.status().phase == "promoted"  # it waits for the old version's request
            release.set()
        await until(lambda: manager.status().phase == "done")
        assert found == [b"old, in the end"]


async def test_claims_obey_the_same_bucket_and_stay_pinned(pair: Any, until: Any) -> None:
    from deia_hardening.plugin import VersionSplit

    async with pair.up() as live:
        split: VersionSplit = live.service(VersionSplit)
        assert split.may_claim("task", "", "")
        manager = await begin(live, until, "50%")
        keys = [str(number) for number in range(100)]
        for key in keys:
            answer = await live.post("/", headers=[(b"x-user", key.encode())])
            version = "v2" if answer.body == b"new" else "app"
            assert split.version_for(key) == version
            assert split.may_claim(key, version, "")
            assert not split.may_claim(key, "app" if version == "v2" else "v2", "")
        assert split.may_claim("x", "v2", "v2")
        assert not split.may_claim("x", "app", "v2")
        await manager.rollback()
        assert not split.may_claim("x", "app", "v2")  # not declared compatible
        assert split.may_claim("x", "v2", "v2")  # finished by its own version
