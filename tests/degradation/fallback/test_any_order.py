"""Whatever bots and clients do: one answer, of one bot; nothing with effects twice; every bot given back."""

from __future__ import annotations

import random
from collections import Counter

import anyio
import pytest

from deia_degradation import DegradationManager
from deia_hardening.testing import ASGIRecorder, http_scope, running

BOTS = "abcd"
ENDS = ["ok", "ok", "ok", "500", "503", "hangs", "slow", "raises", "breaks", "silent", "refused", "early", "drips"]
CALLS = [("GET", "/x/1"), ("GET", "/x/1"), ("POST", "/x/1"), ("PUT", "/x/1"), ("GET", "/x/effect")]


def bot(name, rng, acted):
    async def answer(scope, receive, send):
        end = rng.choice(ENDS)
        if end == "refused":
            raise ConnectionRefusedError
        while end != "early" and (await receive()).get("more_body"):
            pass
        acted[dict(scope["headers"])[b"x-id"]] += 1
        if end == "hangs":
            await anyio.sleep_forever()
        if end == "slow":
            await anyio.sleep(rng.random() * 0.06)
        if end == "raises":
            raise KeyError(name)
        if end == "silent":
            return
        status = int(end) if end in ("500", "503") else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-bot", name.encode())]})
        for part in range(3):
            if end == "breaks" and part == 1:
                raise RuntimeError(name)
            await send({"type": "http.response.body", "body": name.encode(), "more_body": True})
            await anyio.sleep(0.003 if end == "drips" else 0)
        await send({"type": "http.response.body", "body": b""})

    return answer


async def nobody(scope, receive, send):
    pass


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("seed", range(2))
def test_one_answer_of_one_bot_and_nothing_twice(backend, seed):
    rng, acted = random.Random(seed), Counter()
    pool = {
        "routes": ["/x/**"], "bots": [{"id": name, "upstream": "http://127.0.0.1:9"} for name in BOTS],
        "first_within": "50ms", "retry": {"hedge_min": "5ms", "per_second": 1000}, "eject": {"backoff": "50ms"},
    }  # fmt: skip
    given = {"home": ".deia", "requests": {"effects": ["GET /x/effect"]}, "degradation": {"pools": {"p": pool}}}

    async def ask(live, number):
        await anyio.sleep(rng.random())
        method, path = rng.choice(CALLS)
        body = b"" if method == "GET" else b"hi"
        headers = [(b"x-id", b"%d" % number), (b"content-length", b"%d" % len(body))]
        scope = http_scope(method, path, headers=headers)
        client = ASGIRecorder(live.app, scope, {"type": "http.request", "body": body}, hang=rng.random() < 0.8)
        with anyio.move_on_after(rng.choice([0.004, 0.02, 0.1, 5.0])):
            await client.run()
        starts = [message for message in client.sent if message["type"] == "http.response.start"]
        bodies = {message.get("body") for message in client.sent if message["type"] == "http.response.body"} - {b""}
        assert len(starts) <= 1
        assert len(bodies) <= 1
        if bodies and starts:
            assert dict(starts[0]["headers"]).get(b"x-bot") in (None, *bodies), "our own refusals name no bot"
        if method == "POST" or path == "/x/effect":
            assert acted[b"%d" % number] <= 1
        assert acted[b"%d" % number] <= 3

    async def main():
        async with running(nobody, given) as live:
            manager = live.service(DegradationManager)
            bots = manager.pool("p")
            for member in bots.members():
                member.target = bot(member.bot.id, rng, acted)
            async with anyio.create_task_group() as group:
                for number in range(150):
                    group.start_soon(ask, live, number)
            with anyio.fail_after(20):
                while any(one.in_flight for one in bots.status()):
                    await anyio.sleep(0.01)
            assert manager.gate.in_flight == 0
            assert bots.attempts_made > bots.calls

    anyio.run(main, backend=backend)
