"""Requests that bots answer: who is asked, who stands in, and what is never sent twice."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from deia_degradation import Bot, DegradationManager
from deia_hardening import SettingsError, harden
from deia_hardening.testing import ASGIRecorder, http_scope, running, websocket_scope


async def test_every_bot_answers_its_part_and_the_rest_is_the_apps(fleet):
    bots = fleet.Bots(served_by=True)
    async with bots.open() as app:
        seen = Counter([(await app.get("/ask")).headers["x-served-by"] for _ in range(60)])
        assert set(seen) == {"a", "b", "c"}
        assert (await app.get("/else")).body == b"the app's own"


async def test_the_named_bot_answers_while_it_can_and_another_stands_in(fleet):
    bots = fleet.Bots()
    async with bots.open() as app:
        assert {(await app.post("/bots/b/task")).body for _ in range(10)} == {b"b"}
        app.pool.drain("b")
        assert {(await app.post("/bots/b/task")).body for _ in range(20)} == {b"a", b"c"}
        assert (await app.post("/bots/unknown/task")).body == b"the app's own"


@pytest.mark.parametrize("trouble", [500, 503, "raise", "soft"])
async def test_a_failing_bot_costs_no_get_and_is_soon_out(fleet, trouble):
    bots = fleet.Bots(failure={"body": {"success": False}})
    bots["b"].behaviour = trouble
    async with bots.open() as app:
        answers = [await app.get("/ask") for _ in range(200)]
        assert all(one.status == 200 and one.body in (b"a", b"c") for one in answers)
        assert bots["b"].asked <= 8
        assert {one.id: one.state for one in app.pool.status(0.0)}["b"] == "ejected"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_bot_that_hangs_costs_no_get_and_is_out(fleet, backend):
    async def main():
        bots = fleet.Bots(retry={"hedge_min": "10ms"})
        bots["b"].behaviour = "hang"
        async with bots.open() as app:
            with anyio.fail_after(30):
                answers = [await app.get("/ask") for _ in range(120)]
            assert all(one.status == 200 and one.body in (b"a", b"c") for one in answers)
            assert {one.id: one.state for one in app.pool.status(0.0)}["b"] == "ejected"
            with anyio.fail_after(10):
                while any(one.in_flight for one in app.pool.status(0.0)):
                    await anyio.sleep(0.01)
        assert bots["b"].cancelled == bots["b"].asked

    anyio.run(main, backend=backend)


async def test_a_post_that_was_sent_is_not_sent_again(fleet):
    bots = fleet.Bots()
    bots.all(500)
    async with bots.open() as app:
        one = await app.post("/ask", b"x")
        assert (one.status, one.body, bots.asked) == (500, b"trouble", 1)


async def test_a_post_with_an_idempotency_key_is_sent_again_with_its_body(fleet):
    bots = fleet.Bots()
    bots["a"].behaviour = bots["b"].behaviour = 500
    async with bots.open() as app:
        one = await app.post("/ask", b"payload", headers={"idempotency-key": "k"})
        assert (one.status, one.body) == (200, b"c")
        assert all(bot.bodies in ([], [b"payload"]) for bot in bots.bots.values())


async def test_a_get_with_effects_is_never_sent_twice(fleet):
    bots = fleet.Bots()
    bots.all(500)
    async with bots.open() as app:
        assert (await app.get("/mailbox")).status == 500
        assert bots.asked == 1


async def test_at_most_two_further_bots_are_asked_and_the_last_answer_is_passed_on(fleet):
    bots = fleet.Bots()
    bots.all(503)
    async with bots.open() as app:
        one = await app.get("/ask")
        assert (one.status, one.body, bots.asked) == (503, b"trouble", 3)


async def test_a_4xx_is_an_answer(fleet):
    bots = fleet.Bots()
    bots.all(404)
    async with bots.open() as app:
        for _ in range(50):
            assert (await app.get("/ask")).status == 404
        assert bots.asked == 50
        assert {one.state for one in app.pool.status(0.0)} == {"serving"}


async def test_a_429_moves_the_call_and_rests_the_bot_without_blame(fleet):
    bots = fleet.Bots()
    bots["b"].behaviour = 429
    async with bots.open() as app:
        for _ in range(40):
            assert (await app.get("/ask")).status == 200
        assert bots["b"].asked == 1
        status = {one.id: one for one in app.pool.status(app.core.clock.monotonic())}["b"]
        assert (status.state, status.failed) == ("resting", 0)


async def test_an_answer_that_breaks_after_its_start_is_passed_on_as_it_is(fleet):
    bots = fleet.Bots()
    bots.all("half")
    async with bots.open() as app:
        one = await app.get("/ask")
        assert isinstance(one.error, ConnectionError)
        assert one.body == b"half"
        assert bots.asked == 1


async def test_an_exception_is_the_bots_own_when_nobody_stands_in(fleet):
    bots = fleet.Bots()
    bots.all("raise")
    async with bots.open() as app:
        one = await app.post("/ask")
        assert isinstance(one.error, KeyError)


async def test_with_no_bot_left_the_answer_is_503_with_retry_after(fleet):
    bots = fleet.Bots()
    async with bots.open() as app:
        for name in "abc":
            app.pool.drain(name)
        one = await app.get("/ask")
        assert one.status == 503
        assert int(one.headers["retry-after"]) >= 1


async def test_a_body_beyond_the_bound_is_not_kept_and_not_sent_again(fleet):
    bots = fleet.Bots(retry={"body": "1KiB"})
    bots.all(500)
    async with bots.open() as app:
        one = await app.call("PUT", "/ask", b"x" * 2000)
        assert (one.status, bots.asked) == (500, 1)


async def test_a_stream_is_not_held_back(fleet):
    bots = fleet.Bots()
    gate = anyio.Event()

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"2"})

    bots.all(stream)
    async with bots.open() as app, anyio.create_task_group() as group:
        recorder = ASGIRecorder(app.app, http_scope("GET", "/ask"), {"type": "http.request"}, hang=True)
        group.start_soon(recorder.run)
        with anyio.fail_after(5):
            while recorder.body != b"1":
                await anyio.sleep(0.001)
        gate.set()
        with anyio.fail_after(5):
            while recorder.body != b"12":
                await anyio.sleep(0.001)


async def test_time_to_the_first_byte_is_bounded_and_another_bot_is_asked(fleet):
    bots = fleet.Bots(first_within="50ms", retry={"hedge": False})
    bots["a"].behaviour = bots["b"].behaviour = "hang"
    async with bots.open() as app:
        with anyio.fail_after(10):
            assert [(await app.get("/ask")).body for _ in range(5)] == [b"c"] * 5
            bots.all("hang")
            assert (await app.post("/ask")).status == 504


async def test_the_deadline_is_passed_on_and_ends_the_wait(fleet):
    bots = fleet.Bots(retry={"hedge": False})
    async with bots.open(
        degradation={**bots.settings["degradation"], "routes": [{"route": "/ask", "deadline": "80ms"}]}
    ) as app:
        await app.get("/ask")
        scope = next(bot for bot in bots.bots.values() if bot.asked).scopes[0]
        left = dict(scope["headers"])[b"x-request-timeout"]
        assert 0 < int(left.removesuffix(b"ms")) <= 80
        bots.all("hang")
        with anyio.fail_after(10):
            assert (await app.get("/ask")).status == 504


async def test_a_websocket_goes_to_a_bot(fleet):
    bots = fleet.Bots()
    async with bots.open() as app:
        recorder = await ASGIRecorder(app.app, websocket_scope("/bots/b/task"), {"type": "websocket.connect"}).run()
        assert [m.get("text") for m in recorder.sent if m["type"] == "websocket.send"] == ["b"]


async def test_sessions_stay_on_their_bot(fleet):
    bots = fleet.Bots(affinity="header:x-session")
    async with bots.open() as app:
        for session in range(20):
            answers = {(await app.get("/ask", headers={"x-session": str(session)})).body for _ in range(5)}
            assert len(answers) == 1


async def test_in_degraded_nobody_is_hedged(fleet):
    bots = fleet.Bots(retry={"hedge_min": "1ms"}, first_within="300ms")
    slow = 0.05

    async def late(scope, receive, send):
        await anyio.sleep(slow)
        await fleet.answer(send, 200, b"late")

    bots.all(late)
    async with bots.open() as app:
        await app.service(DegradationManager).pin("DEGRADED")
        for _ in range(5):
            assert (await app.get("/ask")).body == b"late"
        assert bots.asked == 5


async def test_the_slower_of_two_is_cancelled_and_judged(fleet):
    bots = fleet.Bots(retry={"hedge_min": "5ms"})
    bots["a"].behaviour = "hang"
    async with bots.open() as app:
        for name in "bc":
            app.pool.remove(name)
        app.pool.add(Bot("b", bots["b"], tier=1))
        one = await app.get("/ask")
        assert one.body == b"b"
        assert {status.id: status.failed for status in app.pool.status(0.0)} == {"a": 1, "b": 0}
        assert app.pool.status(0.0)[0].in_flight == 0


async def test_a_client_that_leaves_is_nobodys_failure(fleet):
    bots = fleet.Bots(retry={"hedge": False})

    async def until_gone(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    bots.all(until_gone)
    async with bots.open() as app:
        await ASGIRecorder(app.app, http_scope(path="/ask"), {"type": "http.request"}).run()
        assert bots.asked == 1
        assert sum(status.failed for status in app.pool.status(0.0)) == 0
        assert sum(status.in_flight for status in app.pool.status(0.0)) == 0


async def test_a_cancelled_request_gives_everything_back(fleet):
    bots = fleet.Bots(retry={"hedge_min": "5ms"})
    bots.all("hang")
    async with bots.open() as app:
        with anyio.move_on_after(0.1):
            await app.get("/ask")
        with anyio.fail_after(5):
            while any(status.in_flight for status in app.pool.status(0.0)):
                await anyio.sleep(0.005)
        assert app.service(DegradationManager).gate.in_flight == 0


async def test_ejections_and_panic_are_events_and_half_the_bots_gone_degrade(fleet):
    bots = fleet.Bots()
    seen = []
    async with bots.open(degradation={**bots.settings["degradation"], "modes": {"tick": "60s"}}) as app:
        from deia_hardening.events import BotChanged

        app.core.events.subscribe(BotChanged, seen.append, inline=True)
        bots["a"].behaviour = bots["b"].behaviour = 500
        for _ in range(300):
            assert (await app.get("/ask")).status == 200
        assert {event.bot for event in seen if isinstance(event, BotChanged) and event.state == "ejected"} == {"a", "b"}
        manager = app.service(DegradationManager)
        assert manager.mode.value == "DEGRADED", "at once: no tick has come yet"
        assert "bots gone" in manager.control.state.cause


async def test_pools_follow_a_reload_and_keep_what_was_added_by_hand(fleet, tmp_path):
    import yaml

    folder = tmp_path / "config"
    folder.mkdir()

    def write(bots):
        text = yaml.safe_dump({"home": str(tmp_path / ".deia"), "degradation": {"pools": {"p": {"bots": bots}}}})
        (folder / "hardening.yaml").write_text(text)

    write([{"id": "a", "upstream": "http://127.0.0.1:1"}, {"id": "b", "upstream": "http://127.0.0.1:2"}])

    async def other(scope, receive, send):
        await fleet.own_app(scope, receive, send)

    async with running(harden(other, folder), folder) as app:
        pool = app.service(DegradationManager).pool("p")
        pool.add(Bot("z"))
        write([{"id": "b", "upstream": "http://127.0.0.1:3", "weight": 2.0}, {"id": "c", "upstream": "http://x:1"}])
        from deia_hardening.plugin import Revisions

        await app.service(Revisions).propose(source="test")
        assert {bot.id: bot.weight for bot in pool.bots} == {"b": 2.0, "c": 1.0, "z": 1.0}


def test_two_bots_of_one_name_are_refused(fleet):
    pools = {"p": {"bots": [{"id": "a"}, {"id": "a"}]}}
    with pytest.raises(SettingsError, match="two bots are called 'a'"):
        harden(fleet.FakeBot("x"), {"degradation": {"pools": pools}})


async def test_a_finished_request_leaves_nothing_behind_that_holds_its_revision(fleet):
    import gc
    import weakref

    bots = fleet.Bots()
    held = []

    async def spy(scope, receive, send):
        held.append(weakref.ref(scope["deia_hardening"]))
        await fleet.answer(send, 200, b"ok")

    bots.all(spy)
    async with bots.open() as app:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await app.get("/ask")
            for bot in bots.bots.values():
                bot.scopes.clear()
            assert [one() for one in held] == [None] * 5
        finally:
            gc.enable()


async def test_a_clients_word_on_its_own_priority_is_not_passed_on_as_ours(fleet):
    bots = fleet.Bots()
    claims = {"x-criticality": "critical_plus", "x-request-timeout": "1ms", "x-other": "1"}
    async with bots.open() as app:
        await app.get("/ask", headers=claims)
        seen = dict(next(bot for bot in bots.bots.values() if bot.asked).scopes[0]["headers"])
        assert seen == {b"x-other": b"1"}


async def test_what_pools_do_shows_in_the_metrics(fleet):
    bots = fleet.Bots()
    bots["a"].behaviour = 500
    async with bots.open() as app:
        for _ in range(20):
            await app.get("/ask")
        values = {family.name: child.value for family in app.core.metrics for _, child in family.items()}
        assert values["degradation_calls_total"] == 20
        assert values["degradation_attempts_total"] == bots.asked > 20
        assert values["degradation_mode"] == 0
