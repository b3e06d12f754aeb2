"""Sessions that clients and servers treat in their own ways: new ids on the way, cookies in pieces, several at once."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

import pytest

from deia_hardening.settings import Ratio, Seconds
from deia_hardening.testing import ASGIRecorder
from deia_hardening.types import Receive, Scope, Send
from deia_migration import Guards, MigrationManager, Plan, Step


def keeps_sessions(service: Any) -> None:
    """A cookie session in the memory of this version; a login gives it another id, as it should."""
    known: set[str] = set()

    async def behave(scope: Scope, receive: Receive, send: Send) -> None:
        jar = SimpleCookie("; ".join(value.decode() for name, value in scope["headers"] if name == b"cookie"))
        session = jar["sid"].value if "sid" in jar else ""
        status, headers = 200, []
        if scope["path"] == "/login":
            known.discard(session)
            session = ""
        elif session and session not in known:
            status = 404
        if not session:
            session = f"{service.name}-{id(known)}-{service.requests}"
            known.add(session)
            headers = [(b"set-cookie", b"theme=dark"), (b"set-cookie", f"sid={session}; Path=/".encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": service.name.encode()})

    service.behaviour = behave


def cookie(answer: ASGIRecorder) -> bytes:
    fields: list[tuple[bytes, bytes]] = answer.sent[0]["headers"]
    return next(value.partition(b";")[0] for name, value in fields if value.startswith(b"sid="))


async def begin(live: Any, until: Any, weight: str = "50%") -> MigrationManager:
    manager: MigrationManager = live.service(MigrationManager)
    guards = Guards(every=Seconds("1h"))
    await manager.start("v2", plan=Plan(steps=(Step(weight=Ratio(weight), gate="manual"),), guards=guards))
    await until(lambda: manager.status().weight > 0, "the first step")
    return manager


def user(number: int) -> list[tuple[bytes, bytes]]:
    return [(b"x-user", str(number).encode())]


@pytest.fixture
def kept(pair: Any) -> Any:
    for service in (pair.old, pair.new):
        keeps_sessions(service)
    return pair


async def test_a_session_that_gets_another_id_stays_where_it_is(kept: Any, until: Any) -> None:
    async with kept.up(sessions=["cookie:sid"]) as live:
        await begin(live, until)
        served = set()
        for number in range(30):
            first = await live.post("/", headers=user(number))
            login = await live.post("/login", headers=[(b"cookie", cookie(first))])
            after = await live.post("/", headers=[(b"cookie", cookie(login))])
            assert (login.status, after.status) == (200, 200)
            assert first.body == login.body == after.body
            served.add(after.body)
        assert served == {b"old", b"new"}


async def test_a_session_cookie_is_found_in_a_later_cookie_field(kept: Any, until: Any) -> None:
    """HTTP/2 clients may send each cookie in a field of its own (RFC 9113, section 8.2.3)."""
    async with kept.up(sessions=["cookie:sid"]) as live:
        await begin(live, until, "100%")
        mine = cookie(await live.post("/"))
        for more in ([], [(b"x-user", b"1")]):
            answer = await live.post("/", headers=[(b"cookie", b"theme=dark"), (b"cookie", mine), *more])
            assert (answer.status, answer.body) == (200, b"new")


async def test_a_version_that_misses_a_readiness_check_keeps_its_sessions(kept: Any, until: Any) -> None:
    async with kept.up(sessions=["cookie:sid"]) as live:
        manager = await begin(live, until, "100%")
        mine = cookie(await live.post("/"))
        manager._router.live.candidate.ready = False  # type: ignore[union-attr]
        assert (await live.post("/", headers=[(b"cookie", mine)])).body == b"new"
        assert (await live.post("/")).body == b"old"


async def test_a_stale_session_of_one_kind_does_not_hide_another(pair: Any, until: Any) -> None:
    pair.new.headers = [(b"mcp-session-id", b"s-1")]
    async with pair.up(sessions=["cookie:sid", "header:mcp-session-id"]) as live:
        await begin(live, until, "100%")
        await live.post("/")
        both = [(b"cookie", b"sid=of-last-year"), (b"mcp-session-id", b"s-1")]
        assert (await live.post("/", headers=both)).body == b"new"


async def test_a_session_id_that_is_the_key_as_well_is_looked_for_first(pair: Any, until: Any) -> None:
    pair.new.headers = [(b"mcp-session-id", b"s-1")]
    async with pair.up(key=["header:mcp-session-id"]) as live:
        manager = await begin(live, until, "100%")
        await live.post("/")
        manager._router.set_weight(0.0)
        assert (await live.post("/", headers=[(b"mcp-session-id", b"s-1")])).body == b"new"


async def test_a_session_begun_by_an_override_stays_out_of_the_statistics(pair: Any, until: Any) -> None:
    pair.new.headers = [(b"mcp-session-id", b"s-1")]
    async with pair.up(override={"secret": "letmein"}) as live:
        manager = await begin(live, until, "1%")
        await live.post("/", headers=[(b"x-deia-version", b"letmein:new")])
        for _ in range(5):
            assert (await live.post("/", headers=[(b"mcp-session-id", b"s-1")])).body == b"new"
        answered = (await live.post("/", headers=user(0))).body.decode()  # "new" once in a hundred salts
        await until(lambda: manager.status().requests[answered] == 1, "the one that counts")
        figures = manager.status().requests
        assert (figures["old"], figures["new"]) == (answered == "old", answered == "new")
