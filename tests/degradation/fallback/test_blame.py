"""Who is to blame: a bot for what it says in whatever form, never for what its client does."""

from __future__ import annotations

import gzip
import zlib

import anyio
import pytest
from anyio.lowlevel import checkpoint

from deia_hardening.testing import ASGIRecorder, http_scope, websocket_scope

SOFT = b'{"success": false}'
JSON = (b"content-type", b"application/json")


def answering(headers, *chunks):
    async def behave(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunks[-1]})

    return behave


FORMS = {
    "in pieces": answering([JSON], SOFT[:4], SOFT[4:], b""),
    "no length": answering([JSON], SOFT),
    "of its own type": answering([(b"Content-Type", b"application/vnd.bot+json; charset=utf-8")], SOFT),
    "gzip": answering([JSON, (b"content-encoding", b"gzip")], gzip.compress(SOFT)),
    "deflate": answering([JSON, (b"content-encoding", b"deflate")], zlib.compress(SOFT)),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_bot_that_says_it_failed_has_failed_in_whatever_form_it_says_so(fleet, form):
    bots = fleet.Bots(failure={"body": {"success": False}})
    bots["b"].behaviour = FORMS[form]
    async with bots.open() as app:
        answers = [await app.get("/ask") for _ in range(100)]
        assert all(one.body in (b"a", b"c") for one in answers)
        assert {one.id: one.state for one in app.pool.status(0.0)}["b"] == "ejected"


OTHER = {
    "longer than is looked into": answering([JSON], b'{"success": false, "more": "', b"x" * 2000, b'"}'),
    "no JSON": answering([(b"content-type", b"text/plain")], SOFT),
    "another answer": answering([JSON], b'{"success": ', b"true}"),
    "cut off": answering([JSON], b'{"success": fal'),
    "nothing": answering([JSON], b""),
    "a bomb": answering([JSON, (b"content-encoding", b"gzip")], gzip.compress(b"[" + b" " * 100_000)),
}


@pytest.mark.parametrize("form", OTHER)
async def test_what_does_not_say_so_is_passed_on_as_it_is(fleet, form):
    bots = fleet.Bots(failure={"body": {"success": False}, "body_limit": "1KiB"})
    bots.all(OTHER[form])
    async with bots.open() as app:
        one = await app.get("/ask")
        bare = await ASGIRecorder(bots["a"], http_scope("GET", "/ask"), {"type": "http.request"}).run()
        assert [message for message in one.sent if message.get("body")] == [m for m in bare.sent if m.get("body")]
        assert sum(status.failed for status in app.pool.status(0.0)) == 0


class Leaving(ASGIRecorder):
    """A client that is gone after the first piece, at a server that says so by OSError."""

    async def send(self, message):
        if len(self.sent) >= 2:
            raise OSError("the client has left")
        await super().send(message)


async def test_a_client_that_leaves_in_the_middle_is_nobodys_failure(fleet):
    bots = fleet.Bots()
    bots.all(answering([], b"1", b"2", b"3"))
    async with bots.open() as app:
        for _ in range(20):
            recorder = await Leaving(app.app, http_scope("GET", "/ask"), {"type": "http.request"}).run()
            assert isinstance(recorder.error, OSError)
        status = app.pool.status(0.0)
        assert [(one.failed, one.in_flight) for one in status] == [(0, 0)] * 3


async def test_a_websocket_whose_client_leaves_is_nobodys_failure(fleet):
    bots = fleet.Bots()
    async with bots.open() as app:
        for _ in range(20):
            scope = websocket_scope("/bots/b/task")
            await Leaving(app.app, scope, {"type": "websocket.connect"}).run()
        status = app.pool.status(0.0)
        assert [(one.failed, one.in_flight) for one in status] == [(0, 0)] * 3


async def test_a_bot_that_denies_handshakes_with_500_fails(fleet):
    bots = fleet.Bots()

    async def deny(scope, receive, send):
        await receive()
        await send({"type": "websocket.http.response.start", "status": 500, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})

    async with bots.open() as app:
        app.pool.member("b").target = deny
        scope = websocket_scope("/bots/b/task")
        scope["extensions"] = {"websocket.http.response": {}}
        await ASGIRecorder(app.app, scope, {"type": "websocket.connect"}).run()
        assert {one.id: one.failed for one in app.pool.status(0.0)}["b"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("first", ["waits", "fails"])
def test_a_client_that_leaves_while_two_bots_are_asked_ends_both(backend, first, fleet):
    """Each waits until its client is gone, or the first has failed by then: nobody may wait for ever."""

    async def main():
        bots = fleet.Bots(retry={"hedge_min": "5ms"})
        calls = []

        async def behave(scope, receive, send):
            calls.append(scope)
            if first == "fails" and len(calls) == 1:
                while len(calls) < 2:
                    await anyio.sleep(0.001)
                await fleet.answer(send, 500)
                return
            while (await receive())["type"] != "http.disconnect":
                pass

        bots.all(behave)
        async with bots.open() as app:

            async def receive():
                if not asked:
                    asked.append(True)
                    return {"type": "http.request", "body": b"", "more_body": False}
                while len(calls) < 2:
                    await anyio.sleep(0.001)
                return {"type": "http.disconnect"}

            async def send(message):
                raise AssertionError("nothing was answered")

            asked = []
            with anyio.fail_after(20):
                await app.app(http_scope("GET", "/ask"), receive, send)
                while any(one.in_flight for one in app.pool.status(0.0)):
                    await checkpoint()

    anyio.run(main, backend=backend)
