"""The pool: who is asked, who is out, how they come back."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from deia_degradation.pool.bot import Bot, BotChange, BotState, Verdict
from deia_degradation.pool.choice import PoolPolicy
from deia_degradation.pool.members import Members


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def seen() -> list[BotChange]:
    return []


@pytest.fixture
def pool(time: Time, seen: list[BotChange]) -> Members:
    random.seed(3)
    return Members("bots", [Bot("a"), Bot("b"), Bot("c")], clock=time, listener=seen.append)


def serve(pool: Members, time: Time, count: int, bad: set[str] = frozenset(), seconds: float = 0.01, **kwargs) -> dict:
    asked: dict[str, int] = {}
    for _ in range(count):
        member = pool.choose(time.now, **kwargs)
        assert member is not None
        asked[member.bot.id] = asked.get(member.bot.id, 0) + 1
        time.now += seconds
        pool.done(member, time.now, seconds, Verdict.FAILED if member.bot.id in bad else Verdict.GOOD, "500")
    return asked


def state(pool: Members, bot: str, time: Time) -> str:
    return {status.id: status.state for status in pool.status(time.now)}[bot]


def fail_until_out(pool: Members, time: Time, bot: str, *also: str) -> None:
    for _ in range(2000):
        serve(pool, time, 1, {bot, *also}, probe=True)
        if state(pool, bot, time) == BotState.EJECTED:
            return
    raise AssertionError("never ejected")


def test_every_bot_gets_its_part(pool, time):
    held = [pool.choose(time.now) for _ in range(30)]
    for member in held:
        pool.done(member, time.now, 0.01, Verdict.GOOD)
    assert len({member.bot.id for member in held}) == 3


def test_a_failing_bot_is_ejected_and_no_longer_asked(pool, time, seen):
    serve(pool, time, 100)
    fail_until_out(pool, time, "b")
    assert [(change.bot, change.state) for change in seen] == [("b", "ejected")]
    time.now += 0.0
    assert "b" not in serve(pool, time, 30)


def test_an_ejected_bot_is_probed_one_request_at_a_time_and_comes_back_slowly(pool, time, seen):
    serve(pool, time, 100)
    fail_until_out(pool, time, "b")
    time.now += 5.0
    probe = pool.choose(time.now, probe=True)
    assert probe.bot.id == "b"
    others = [pool.choose(time.now, probe=True) for _ in range(20)]
    assert all(member.bot.id != "b" for member in others)
    for member in others:
        pool.done(member, time.now, 0.01, Verdict.GOOD)
    pool.done(probe, time.now, 0.01, Verdict.GOOD)
    assert seen[-1].state == "restored"
    assert serve(pool, time, 100).get("b", 0) <= 30
    time.now += 10.0
    held = [pool.choose(time.now) for _ in range(30)]
    assert sum(member.bot.id == "b" for member in held) >= 7


def test_where_nothing_can_be_repeated_a_bot_comes_back_all_the_same(pool, time, seen):
    serve(pool, time, 100)
    assert pool.eject("b", "by hand")
    out = time.now
    while state(pool, "b", time) == BotState.EJECTED:
        asked = serve(pool, time, 1, probe=False)
        assert time.now < out + 3.0
        assert "b" not in asked or time.now >= out + 1.8, "a call that may fail for good is the last resort"
    assert seen[-1] == BotChange("b", "restored", "a probe succeeded")


def test_a_failed_probe_doubles_the_pause(pool, time):
    serve(pool, time, 100)
    fail_until_out(pool, time, "b")
    pauses = []
    for _ in range(9):
        member = pool.member("b")
        pauses.append(member.ejected_until - time.now)
        time.now = member.ejected_until
        probe = pool.choose(time.now, probe=True)
        assert probe is member
        pool.done(probe, time.now, 0.01, Verdict.FAILED, "500")
    for before, after in itertools.pairwise(pauses[:6]):
        assert 1.6 < after / before < 2.5
    assert max(pauses) <= 66.0


def test_a_probe_whose_client_left_frees_the_place_for_the_next(pool, time):
    serve(pool, time, 100)
    fail_until_out(pool, time, "b")
    time.now += 5.0
    pool.done(pool.choose(time.now, probe=True), time.now, 0.0, Verdict.NEUTRAL)
    assert pool.choose(time.now, probe=True).bot.id == "b"


def test_the_last_bot_is_never_ejected(pool, time, seen):
    serve(pool, time, 100)
    fail_until_out(pool, time, "b")
    fail_until_out(pool, time, "c", "b")
    serve(pool, time, 200, {"a", "b", "c"})
    assert state(pool, "a", time) == BotState.SERVING
    assert pool.eject("a", "by hand") is False
    assert pool.panic
    assert pool.healthy_share(time.now) == 0.0
    assert seen[-1].state == "panic"


def test_a_drained_bot_is_not_asked_until_restored(pool, time):
    assert pool.drain("a", "deploy")
    assert "a" not in serve(pool, time, 50)
    assert pool.healthy_share(time.now) == 1.0
    assert pool.restore("a")
    time.now += 11.0
    assert any(pool.choose(time.now).bot.id == "a" for _ in range(20))
    assert not pool.drain("nobody")


def test_bots_of_a_quota_key_rest_together_and_come_back_by_themselves(time, seen):
    bots = [Bot("a", quota="x"), Bot("b", quota="x"), Bot("c", quota="y")]
    pool = Members("llm", bots, clock=time, listener=seen.append)
    pool.rest_until(lambda bot: bot.quota == "x", time.now + 30, time.now)
    pool.add(Bot("d", quota="x"))  # its key rests already
    assert set(serve(pool, time, 20)) == {"c"}
    assert pool.retry_after(time.now) == pytest.approx(29.8)
    time.now += 30
    assert len({pool.choose(time.now).bot.id for _ in range(60)}) == 4


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 3.0), (10.0, 1.0, 1.0), (1.0, 2.0, 3.0), (0.5, 0.5, 0.25)])
@pytest.mark.parametrize("at_once", [1, 12])
def test_shares_follow_the_weights(time, weights, at_once):
    random.seed(5)
    pool = Members("bots", [Bot(str(number), weight=weight) for number, weight in enumerate(weights)], clock=time)
    asked, calls = [0.0] * len(weights), []
    for _ in range(6000):
        calls.append(pool.choose(time.now))
        asked[int(calls[-1].bot.id)] += 1
        time.now += 0.01 / at_once
        if len(calls) >= at_once:
            pool.done(calls.pop(0), time.now, 0.01 * random.uniform(0.8, 1.2), Verdict.GOOD)
    for share, weight in zip(asked, weights, strict=True):
        assert share / 6000 == pytest.approx(weight / sum(weights), abs=0.03 if at_once == 1 else 0.07)


@pytest.mark.parametrize("fault", ["slow", "failing", "hanging"])
def test_a_heavy_bot_that_is_no_good_loses_its_share(time, fault):
    random.seed(5)
    pool = Members("bots", [Bot("heavy", weight=9.0), Bot("b"), Bot("c")], clock=time)
    serve(pool, time, 500)
    asked = 0
    for _ in range(300):
        member = pool.choose(time.now)
        heavy = member.bot.id == "heavy"
        asked += heavy
        time.now += 0.01
        if not heavy or fault != "hanging":
            bad = heavy and fault == "failing"
            seconds = 0.2 if heavy and fault == "slow" else 0.01
            pool.done(member, time.now, seconds, Verdict.FAILED if bad else Verdict.GOOD, "500")
    assert asked < 40


def test_a_higher_tier_serves_only_while_no_lower_one_can(time):
    pool = Members("bots", [Bot("a"), Bot("b", tier=1)], clock=time)
    assert set(serve(pool, time, 20)) == {"a"}
    pool.drain("a")
    assert set(serve(pool, time, 20)) == {"b"}


def test_a_retry_leaves_the_tier_when_nobody_else_is_in_it(time):
    pool = Members("bots", [Bot("a"), Bot("b", tier=1)], clock=time)
    first = pool.choose(time.now)
    assert pool.choose(time.now, exclude=[first]).bot.id == "b"


def test_nobody_is_left_for_a_retry_when_all_were_tried(pool, time):
    tried = []
    for _ in range(3):
        tried.append(pool.choose(time.now, exclude=tried))
    assert len({member.bot.id for member in tried}) == 3
    assert pool.choose(time.now, exclude=tried) is None


def test_a_session_stays_on_its_bot_and_only_the_keys_of_a_lost_bot_move(pool, time):
    before = {key: pool.choose(time.now, key=str(key)).bot.id for key in range(300)}
    assert before == {key: pool.choose(time.now, key=str(key)).bot.id for key in range(300)}
    pool.drain("a")
    after = {key: pool.choose(time.now, key=str(key)).bot.id for key in range(300)}
    assert all(after[key] == bot for key, bot in before.items() if bot != "a")
    assert {after[key] for key, bot in before.items() if bot == "a"} == {"b", "c"}


def test_after_a_failure_only_what_can_be_repeated_goes_to_the_suspect(pool, time):
    serve(pool, time, 100)
    while not any(status.failed for status in pool.status(time.now)):
        serve(pool, time, 1, {"b"}, probe=True)
    assert "b" not in serve(pool, time, 50)
    assert "b" in serve(pool, time, 50, probe=True)


@pytest.mark.parametrize("repeatable", [True, False])
def test_the_bot_that_fails_fastest_is_not_preferred(pool, time, repeatable):
    asked = {"a": 0, "b": 0, "c": 0}
    pool.policy = PoolPolicy()
    for _ in range(600):
        member = pool.choose(time.now, probe=repeatable)
        asked[member.bot.id] += 1
        bad = member.bot.id == "b" and asked["b"] % 2 == 0
        seconds = 0.0005 if bad else 0.01
        time.now += seconds
        pool.done(member, time.now, seconds, Verdict.FAILED if bad else Verdict.GOOD)
    assert asked["b"] <= 220


def test_a_bot_that_hangs_collects_no_calls_that_nobody_may_repeat(pool, time):
    serve(pool, time, 300)
    stuck = 0
    for _ in range(6000):  # a minute: its latency, long ago, was as good as the others'
        member = pool.choose(time.now)
        if member.bot.id == "b":
            stuck += 1
            continue
        time.now += 0.01
        pool.done(member, time.now, 0.01, Verdict.GOOD)
    assert 1 <= stuck <= 3


def test_an_empty_pool_chooses_nobody(time):
    pool = Members("bots", clock=time)
    assert pool.choose(time.now) is None
    assert pool.healthy_share(time.now) == 1.0
    pool.add(Bot("a"))
    assert pool.choose(time.now).bot.id == "a"
    assert pool.remove("a")
    assert pool.choose(time.now) is None


def test_a_bot_that_is_replaced_keeps_its_state(pool, time):
    pool.drain("a")
    pool.add(Bot("a", weight=3.0))
    assert state(pool, "a", time) == BotState.DRAINED
    assert {bot.id: bot.weight for bot in pool.bots}["a"] == 3.0


@pytest.mark.parametrize("bot_id", ["", "a b", "a\n", "x" * 129, "\x7f"])
def test_an_id_that_could_do_harm_elsewhere_is_refused(bot_id):
    with pytest.raises(ValueError, match="bot's id"):
        Bot(bot_id)


def test_in_flight_is_exact_with_several_threads(pool, time):
    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(500):
            member = pool.choose(time.now, probe=True)
            verdict = rng.choice([Verdict.GOOD, Verdict.GOOD, Verdict.GOOD, Verdict.FAILED, Verdict.NEUTRAL])
            pool.done(member, time.now, rng.random(), verdict, "x")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(status.in_flight == 0 for status in pool.status(time.now))
