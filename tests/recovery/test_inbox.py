"""The inbox: stored before acknowledged, run once per key, tried again, replayed after a crash; presets verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.context import SCOPE_KEY, Actor
from deia_hardening.plugin import TaskSink
from deia_hardening.testing import ASGIRecorder, running
from deia_hardening.testing.asgi import http_scope
from deia_recovery.errors import StateUnavailable, join_starlette
from deia_recovery.inbox.middleware import InboxMiddleware
from deia_recovery.inbox.senders import sender_for
from deia_recovery.service import DisasterRecovery
from deia_recovery.settings import InboxRoute

SECRET = "s3cret"


class Bot:
    """An app that counts what it was given, and fails when told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.fail: list[int] = []
        self.actors: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        if body and scope["path"] == "/webhook":
            self.seen.append(json.loads(body))
            self.actors.append(scope[SCOPE_KEY].actor.id)
        status = self.fail.pop() if self.fail else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


def settings(home: Path, **route: Any) -> dict[str, Any]:
    inbox = {"path": "/webhook", "preset": "telegram", "secret": SECRET, **route}
    return {"home": str(home), "recovery": {"reserve": "0", "inbox": [inbox]}}


def telegram(update: int, secret: str = SECRET, **more: Any) -> dict[str, Any]:
    return {
        "body": json.dumps({"update_id": update, **more}).encode(),
        "headers": {"X-Telegram-Bot-Api-Secret-Token": secret},
    }


async def until(condition: Any) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.01)


async def test_a_delivery_is_stored_acknowledged_and_run_once(home: Path) -> None:
    bot = Bot()
    async with running(bot, settings(home)) as up:
        for _ in range(3):
            answer = await up.post("/webhook", **telegram(7))
            assert (answer.status, answer.body) == (200, b"")
        await up.post("/webhook", **telegram(8))
        await until(lambda: len(bot.seen) == 2)
        await anyio.sleep(0.3)
    assert sorted(one["update_id"] for one in bot.seen) == [7, 8]


async def test_who_is_not_proven_is_refused_and_nothing_is_stored(home: Path) -> None:
    bot = Bot()
    async with running(bot, settings(home)) as up:
        assert (await up.post("/webhook", **telegram(1, "wrong"))).status == 401
        assert (await up.post("/webhook", b"{}")).status == 401
        assert (await up.service(DisasterRecovery).replayer.inbox.stats()).depth == 0
    assert bot.seen == []


async def test_an_answer_of_500_is_tried_again_and_below_500_is_done(home: Path) -> None:
    bot = Bot()
    bot.fail = [404, 500]
    async with running(bot, settings(home)) as up:
        await up.post("/webhook", **telegram(1))
        await until(lambda: len(bot.seen) == 2)
        inbox = up.service(DisasterRecovery).replayer.inbox
        with anyio.fail_after(20):
            while (await inbox.stats()).done != 1:
                await anyio.sleep(0.01)


async def test_deliveries_of_one_conversation_keep_their_order(home: Path) -> None:
    bot = Bot()
    async with running(bot, settings(home, conversation="json:chat")) as up:
        for i in range(8):
            await up.post("/webhook", **telegram(i, chat="c"))
        await until(lambda: len(bot.seen) == 8)
    assert [one["update_id"] for one in bot.seen] == list(range(8))


async def test_other_methods_and_paths_pass(home: Path) -> None:
    async with running(Bot(), settings(home)) as up:
        assert (await up.get("/webhook")).body == b"answer"
        assert (await up.post("/other", b"{}")).body == b"answer"


async def test_a_full_disk_is_507_and_the_sender_delivers_again(home: Path) -> None:
    bot = Bot()
    async with running(bot, settings(home)) as up:
        recovery = up.service(DisasterRecovery)
        await up.post("/webhook", **telegram(1))
        recovery.state.closed_for = "the disk is full"
        answer = await up.post("/webhook", **telegram(2))
        assert answer.status == 507
        assert answer.headers["retry-after"]
        recovery.state.closed_for = ""
        assert (await up.post("/webhook", **telegram(2))).status == 200
        await until(lambda: len(bot.seen) == 2)


async def test_a_too_large_delivery_is_refused(home: Path) -> None:
    async with running(Bot(), settings(home, limit="1KiB")) as up:
        assert (await up.post("/webhook", **telegram(1, text="x" * 2000))).status == 413


CHILD = textwrap.dedent(
    """
    import asyncio, json, sys
    from deia_hardening.testing import running
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(3600)
    async def main():
        route = {"path": "/webhook", "preset": "telegram", "secret": "s3cret"}
        settings = {"home": sys.argv[1], "recovery": {"reserve": "0", "inbox": [route]}}
        async with running(app, settings) as up:
            for i in range(20):
                body = json.dumps({"update_id": i}).encode()
                answer = await up.post("/webhook", body, headers={"X-Telegram-Bot-Api-Secret-Token": "s3cret"})
                assert answer.status == 200
            print("acknowledged", flush=True)
            await asyncio.sleep(3600)
    asyncio.run(main())
    """
)


async def test_kill_9_after_the_acknowledgement_loses_none_of_twenty(home: Path) -> None:
    def crash() -> None:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(home)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "acknowledged"
        child.kill()
        child.wait()
        child.stdout.close()

    await anyio.to_thread.run_sync(crash)
    bot = Bot()
    async with running(bot, settings(home)):
        await until(lambda: len(bot.seen) >= 20)
    assert sorted(one["update_id"] for one in bot.seen) == list(range(20))


async def test_accepted_requests_run_in_their_actors_name_and_only_he_sees_them(home: Path) -> None:
    bot = Bot()
    async with running(bot, {"home": str(home), "recovery": {"reserve": "0"}}) as up:
        sink = up.core.services.get(TaskSink)
        request = {
            "method": "POST",
            "path": "/webhook",
            "query": "",
            "headers": [],
            "body": base64.b64encode(b'{"update_id": 1}').decode(),
        }
        task = await sink.accept(request, key="ann", actor="ann")
        await until(lambda: bot.seen)
        assert bot.actors == ["ann"]
        assert (await up.get(task.status_path)).status == 404
        assert (await up.get("/deia/tasks/nothing")).status == 404
        info = await up.service(DisasterRecovery).replayer.accepted.get(task.id)
        assert info.actor == "ann"
        assert Actor(id="ann").id == info.actor


async def test_unavailable_state_is_an_http_exception_where_starlette_is_used() -> None:
    from starlette.exceptions import HTTPException

    join_starlette()
    error = StateUnavailable("full")
    assert error.status_code == 507
    assert str(error) == "full"
    assert isinstance(error, HTTPException)


def slack(body: bytes, at: int, secret: str = SECRET) -> dict[str, str]:
    signature = hmac.new(secret.encode(), b"v0:%d:" % at + body, hashlib.sha256).hexdigest()
    return {
        "x-slack-request-timestamp": str(at),
        "x-slack-signature": "v0=" + signature,
        "content-type": "application/json",
    }


def test_slack_signatures_as_documented() -> None:
    sender = sender_for(InboxRoute(path="/slack", preset="slack", secret=SECRET))
    body = b'{"type":"event_callback","event_id":"Ev1"}'
    headers = slack(body, 1000)
    assert sender.refusal(headers, body, 1100.0) == ""
    assert sender.key(headers, body) == "Ev1"
    assert not sender.passes(headers, body)
    assert "timestamp" in sender.refusal(headers, body, 9000.0)
    assert "does not fit" in sender.refusal(headers, body + b" ", 1000.0)
    assert "does not fit" in sender.refusal(slack(body, 1000, "other"), body, 1000.0)
    assert sender.passes(headers, b'{"type":"url_verification","challenge":"x"}')
    assert sender.passes({"content-type": "application/x-www-form-urlencoded"}, b"command=/x")


def test_what_the_senders_publish_as_examples_is_believed() -> None:
    """Slack, "Verifying requests from Slack"; GitHub, "Validating webhook deliveries"; RFC 4231, 4.3, in base64."""
    command = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name="
        b"foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2F"
        b"hooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015."
        b"47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    signed = {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    hello = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    jefe = {"x-line-signature": "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM="}
    for verify, secret, headers, body in (
        ("slack", "8f742231b10e8888abcd99yyyzzz85a5", signed, command),
        ("hmac-sha256:X-Hub-Signature-256", "It's a Secret to Everybody", hello, b"Hello, World!"),
        ("hmac-sha256:X-Line-Signature", "Jefe", jefe, b"what do ya want for nothing?"),
    ):
        sender = sender_for(InboxRoute(path="/a", verify=verify, secret=secret))
        assert sender.refusal(headers, body, 1531420620.0) == ""
        assert sender.refusal(headers, body + b"\n", 1531420620.0)
        assert sender.refusal({}, body, 1531420620.0)


@given(st.binary(max_size=200), st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=4))
def test_no_delivery_makes_a_sender_fail(body: bytes, headers: dict[str, str]) -> None:
    for route in (
        InboxRoute(path="/a", preset="slack", secret=SECRET),
        InboxRoute(path="/a", preset="telegram", secret=SECRET, conversation="json:a.b"),
        InboxRoute(path="/a", verify="hmac-sha256:X-Hub-Signature-256", secret=SECRET, key="header:x-id"),
    ):
        sender = sender_for(route)
        assert sender.refusal(headers, body, 0.0)
        assert 0 < len(sender.key(headers, body)) <= 200
        sender.conversation(body)
        sender.passes(headers, body)


@pytest.mark.parametrize("verify", ["magic", "token:", "hmac-sha256"])
def test_a_sender_that_can_not_be_proven_is_refused_at_the_settings(verify: str) -> None:
    with pytest.raises(ValueError):
        sender_for(InboxRoute(path="/a", verify=verify, secret=SECRET))


async def test_while_it_is_not_up_a_delivery_never_reaches_the_app_unverified() -> None:
    route = InboxRoute(path="/webhook", preset="telegram", secret=SECRET)
    bot = Bot()
    layer = InboxMiddleware(bot, {"/webhook": sender_for(route)}, lambda: None)
    answer = await ASGIRecorder(layer, http_scope("POST", "/webhook")).run()
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert bot.seen == []


@pytest.mark.parametrize("name", ["é" * 200, "\U0001f600" * 150, "x" * 5000, "a\nb", "\x00", " "])
async def test_a_delivery_is_stored_whatever_it_is_called(home: Path, name: str) -> None:
    bot = Bot()
    path = "/webhook" + "/long" * 100
    more = {"path": path, "preset": "", "verify": "none", "secret": None, "key": "json:id", "conversation": "json:id"}
    async with running(bot, settings(home, **more)) as up:
        for body in ({"id": name, "n": 1}, {"id": name, "n": 2}, {"id": f"{name}.", "n": 3}):
            assert (await up.post(path, json.dumps(body).encode())).status == 200
        inbox = up.service(DisasterRecovery).replayer.inbox
        stats = await inbox.stats()
        assert stats.depth + stats.done == 2
