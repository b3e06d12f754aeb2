"""Accept and queue: a POST that no bot can serve now becomes a task, and nothing secret is kept of it."""

from __future__ import annotations

import base64
import json
import sys
import types
from contextlib import asynccontextmanager

import anyio
import pytest

from deia_degradation.accept import _stored_headers, _stored_query
from deia_hardening.context import Actor
from deia_hardening.services import AcceptedTask, TaskSink
from deia_hardening.testing import running


class Sink:
    def __init__(self):
        self.taken = []

    async def accept(self, request, *, key, actor):
        self.taken.append((request, key, actor))
        return AcceptedTask("t1", "/api/tasks/t1")


@pytest.fixture
def ann(monkeypatch):
    """Settings under which every request is Ann's."""
    module = types.ModuleType("degradation_sink")
    module.who = lambda scope: Actor("user", "ann", "token")
    monkeypatch.setitem(sys.modules, "degradation_sink", module)
    return {"actor": ["degradation_sink:who"]}


@asynccontextmanager
async def service(fleet, requests, **pool):
    bots = fleet.Bots(accept=True, **pool)
    async with bots.open(requests=requests) as app:
        sink = Sink()
        app.core.services.provide(TaskSink, sink)
        yield bots, app, sink.taken


async def test_a_post_that_nobody_can_serve_becomes_a_task_without_credentials(fleet, ann):
    async with service(fleet, ann) as (_, app, taken):
        for name in "abc":
            app.pool.drain(name)
        headers = {"authorization": "Bearer secret", "cookie": "s=1", "content-type": "text/plain"}
        one = await app.post("/ask", b"payload", headers=headers)
        assert (one.status, json.loads(one.body)) == (202, {"task": "t1", "status": "/api/tasks/t1"})
        assert one.headers["location"] == "/api/tasks/t1"
        request, key, actor = taken[0]
        assert (key, actor) == ("ann", "ann")
        assert [name for name, _ in request["headers"]] == ["content-type"]
        assert "secret" not in json.dumps(request)
        assert (await app.get("/ask")).status == 503


async def test_with_no_sink_nothing_is_promised(fleet, ann):
    bots = fleet.Bots(accept=True)
    async with bots.open(requests=ann) as app:
        for name in "abc":
            app.pool.drain(name)
        assert (await app.post("/ask", b"x")).status == 503


async def test_a_post_that_no_bot_could_be_reached_for_is_accepted_whole(fleet, ann):
    """The last bot is never put out, so a pool whose bots are all down is seen as refused connections."""
    unreachable = [{"id": name, "upstream": "http://127.0.0.1:1"} for name in "xyz"]
    async with service(fleet, ann, bots=unreachable) as (bots, app, taken):
        for name in "abc":
            app.pool.drain(name)
        assert (await app.post("/ask", b"payload")).status == 202
        assert base64.b64decode(taken[0][0]["body"]) == b"payload"
        assert bots.asked == 0
        assert (await app.get("/ask")).status == 503


async def test_a_post_that_was_sent_is_not_accepted_again(fleet, ann):
    async with service(fleet, ann) as (bots, app, taken):
        bots.all(500)
        assert (await app.post("/ask", b"x")).status == 500
        bots.all("raise")
        assert isinstance((await app.post("/ask", b"x")).error, KeyError)
        assert taken == []


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("authorization", False), ("proxy-authorization", False), ("cookie", False), ("x-api-key", False),
        ("api-key", False), ("x-goog-api-key", False), ("x-auth-token", False), ("x-amz-security-token", False),
        ("x-access-token", False), ("x-session-id", False), ("x-csrf-token", False), ("x-hub-signature-256", False),
        ("content-type", True), ("idempotency-key", True), ("accept", True), ("x-keywords", True), ("author", True),
        ("x-tokenizer", True), ("pwd", False), ("passphrase", False), ("x-bearer", False), ("x-passenger", True),
        ("x-compass", True), ("traceparent", True),
    ],
)  # fmt: skip
def test_what_may_be_a_credential_by_its_name_is_not_stored(header, kept):
    assert bool(_stored_headers([(header.encode(), b"v")])) is kept


def test_credentials_in_the_query_are_not_stored_and_the_rest_stays_as_it_is():
    assert _stored_query(b"a=1&api_key=s&token=t&b=%20&access%5Ftoken=u&c") == "a=1&b=%20&c"


FULL_HOUSE = {"initial": 1, "minimum": 1, "maximum": 1, "places": 0}


@asynccontextmanager
async def full_house(sink, **degradation):
    """One request is inside, and more are not let in."""
    inside, over = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/slow":
            inside.set()
            await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    settings = {"home": ".deia", "degradation": {"admission": FULL_HOUSE, **degradation}}
    settings["requests"] = {"actor": ["degradation_sink:who"]}
    async with running(app, settings) as live, anyio.create_task_group() as group:
        live.core.services.provide(TaskSink, sink)
        group.start_soon(live.get, "/slow")
        with anyio.fail_after(30):
            await inside.wait()
        try:
            yield live
        finally:
            over.set()


@pytest.mark.parametrize(
    "opted_in",
    [
        {"routes": [{"route": "POST /task", "accept": True}]},
        {"pools": {"bots": {"accept": True, "routes": ["/task"]}}},
    ],
    ids=["a route", "a pool's"],
)
async def test_a_post_that_is_refused_at_the_door_becomes_a_task_where_its_route_wants_it(ann, opted_in):
    sink = Sink()
    async with full_house(sink, **opted_in) as app:
        one = await app.post("/task", b"payload", headers={"authorization": "Bearer secret"})
        assert (one.status, one.headers["location"]) == (202, "/api/tasks/t1")
        ((request, key, actor),) = sink.taken
        assert (key, actor, base64.b64decode(request["body"])) == ("ann", "ann", b"payload")
        assert "secret" not in json.dumps(request)
        assert (await app.get("/task")).status == 503
        assert (await app.post("/other", b"x")).status == 503
        assert len(sink.taken) == 1


async def test_a_sink_that_does_not_take_it_leaves_the_refusal(ann):
    class Full(Sink):
        async def accept(self, request, *, key, actor):
            raise OSError("the disk is full")

    async with full_house(Full(), routes=[{"route": "POST /task", "accept": True}]) as app:
        one = await app.post("/task", b"payload")
        assert (one.status, one.headers["content-type"]) == (503, "application/problem+json")
        assert int(one.headers["retry-after"]) >= 1
