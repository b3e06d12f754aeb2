"""Outgoing calls: bots chosen, budgets kept, fallbacks before anything was sent on."""

from __future__ import annotations

import fcntl
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from deia_degradation import Bot, DegradationManager, NoBotLeft, QuotaUsedUp, TooSlow
from deia_hardening.testing import running


async def silent(scope, receive, send):
    pass


@asynccontextmanager
async def manager(bots=("a", "b", "c"), **pool):
    given = [one if isinstance(one, dict) else {"id": one} for one in bots]
    async with running(silent, {"home": ".deia", "degradation": {"pools": {"llm": {"bots": given, **pool}}}}) as app:
        yield app.service(DegradationManager)


class Refused(Exception):
    def __init__(self, status, headers=()):
        self.status_code = status
        self.headers = dict(headers)


def figures(pool):
    return {one.id: one for one in pool.status(pool._clock())}


async def test_an_attempt_gives_a_bot_and_judges_it():
    async with manager() as degradation:
        pool = degradation.pool("llm")
        async with degradation.attempt("llm") as a:
            assert a.bot.id in "abc"
            assert figures(pool)[a.bot.id].in_flight == 1
            a.first()
        assert (figures(pool)[a.bot.id].good, figures(pool)[a.bot.id].in_flight) == (1, 0)
        with pytest.raises(OSError, match="gone"):
            async with degradation.attempt("llm") as a:
                raise OSError("gone")
        assert figures(pool)[a.bot.id].failed == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_falls_back_to_another_bot_until_one_succeeds(backend):
    async def main():
        async with manager() as degradation:
            asked = []

            async def send(a):
                asked.append(a.bot.id)
                if len(asked) < 3:
                    raise OSError("down")
                return f"by {a.bot.id}"

            assert await degradation.pool("llm").call(send) == f"by {asked[-1]}"
            assert sorted(asked) == ["a", "b", "c"]

    anyio.run(main, backend=backend)


async def test_the_last_bots_exception_comes_through():
    async with manager() as degradation:

        async def send(a):
            raise OSError(a.bot.id)

        with pytest.raises(OSError):
            await degradation.pool("llm").call(send)


async def test_nothing_is_repeated_after_the_first_content():
    async with manager() as degradation:
        asked = []

        async def send(a):
            asked.append(a.bot.id)
            a.first()
            raise OSError("cut")

        with pytest.raises(OSError, match="cut"):
            await degradation.pool("llm").call(send)
        assert len(asked) == 1


async def test_a_call_with_effects_is_not_repeated_once_sent():
    async with manager() as degradation:
        asked = []

        async def send(a):
            asked.append(a.bot.id)
            raise OSError("who knows")

        with pytest.raises(OSError):
            await degradation.pool("llm").call(send, effects=True)
        assert len(asked) == 1


async def test_a_call_with_effects_goes_to_another_bot_when_it_provably_was_not_sent():
    async with manager() as degradation:
        asked = []

        async def send(a):
            asked.append(a.bot.id)
            if len(asked) == 1:
                raise httpx.ConnectError("refused")
            return "done"

        assert await degradation.pool("llm").call(send, effects=True) == "done"
        assert len(asked) == 2


async def test_a_4xx_is_the_callers_mistake():
    async with manager() as degradation:
        pool = degradation.pool("llm")

        async def send(a):
            raise Refused(400)

        with pytest.raises(Refused):
            await pool.call(send)
        assert sum(one.failed for one in pool.status(0.0)) == 0


@pytest.mark.parametrize("status", [429, 529])
async def test_a_used_up_quota_rests_its_key_and_the_call_moves_to_another(status):
    bots = [{"id": "a", "quota": "x"}, {"id": "b", "quota": "x"}, {"id": "c", "quota": "y", "tier": 1}]
    async with manager(bots) as degradation:
        pool = degradation.pool("llm")

        async def send(a):
            if a.bot.quota == "x":
                raise Refused(status, {"Retry-After": "30"})
            return a.bot.id

        assert await pool.call(send) == "c"
        now = pool._clock()
        assert {one.id: one.state for one in pool.status(now)} == {"a": "resting", "b": "resting", "c": "serving"}
        assert sum(one.failed for one in pool.status(now)) == 0
        assert 28 < pool.retry_after(now) <= 30


async def test_what_a_refusal_says_of_the_limits_is_learned():
    bots = [{"id": "a", "quota": "x"}, {"id": "b", "quota": "y", "tier": 1}]
    told = {"retry-after-ms": "200", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    async with manager(bots) as degradation:
        pool = degradation.pool("llm")

        async def send(a):
            if a.bot.id == "a":
                raise Refused(429, told)
            return a.bot.id

        assert await pool.call(send, tokens=10) == "b"
        now = pool._clock()
        assert pool.retry_after(now) <= 0.2
        until = pool.budget_of(pool.member("a")).reserve(now + 1.0, tokens=10)
        assert 300 < until - now <= 360


async def test_a_bots_own_exception_is_not_lost_when_the_others_have_no_budget():
    bots = [{"id": "a", "quota": "x"}, {"id": "b", "quota": "y", "tier": 1}]
    async with manager(bots, quotas={"x": {"tokens": 5}, "y": {"tokens": 100}}) as degradation:
        pool = degradation.pool("llm")

        async def send(a):
            raise ValueError(f"from {a.bot.id}")

        with pytest.raises(ValueError, match="from b"):
            await pool.call(send, tokens=10)

        async def failed(a):
            a.failed("success is false")
            return a.bot.id

        assert await pool.call(failed, tokens=10) == "b"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_first_content_in_time_falls_back(backend):
    async def main():
        async with manager() as degradation:
            asked = []

            async def send(a):
                asked.append(a.bot.id)
                if len(asked) == 1:
                    await anyio.sleep_forever()
                return "ok"

            with anyio.fail_after(20):
                assert await degradation.pool("llm").call(send, first_within=0.05) == "ok"
            assert figures(degradation.pool("llm"))[asked[0]].failed == 1

    anyio.run(main, backend=backend)


async def test_signs_of_life_keep_the_stall_clock_from_cutting():
    async with manager() as degradation:
        async with degradation.attempt("llm", stall=0.2) as a:
            for _ in range(8):
                await anyio.sleep(0.05)
                a.alive()
            a.first()
            await anyio.sleep(0.3)
        with anyio.fail_after(20), pytest.raises(TooSlow, match="silent"):
            async with degradation.attempt("llm", stall=0.05):
                await anyio.sleep_forever()


async def test_a_caller_that_is_cancelled_blames_nobody():
    async with manager() as degradation:
        pool = degradation.pool("llm")
        with anyio.move_on_after(0.02):
            async with degradation.attempt("llm"):
                await anyio.sleep_forever()
        assert sum(one.failed + one.good + one.in_flight for one in pool.status(0.0)) == 0


async def test_budgets_are_set_aside_before_and_settled_after():
    quotas = {"x": {"tokens": 1000}}
    async with manager([{"id": "a", "quota": "x"}], quotas=quotas) as degradation:
        async with degradation.attempt("llm", tokens=900) as a:
            with pytest.raises(NoBotLeft) as caught:
                async with degradation.attempt("llm", tokens=200):
                    pass
            assert caught.value.retry_after > 30
            a.usage(tokens=100)
        async with degradation.attempt("llm", tokens=900):
            pass


async def test_a_key_without_budget_left_is_passed_over():
    bots = [{"id": "a", "quota": "x"}, {"id": "b", "quota": "y"}]
    async with manager(bots, quotas={"x": {"requests": 1}, "y": {"requests": 3}}) as degradation:
        seen = []
        for _ in range(4):
            async with degradation.attempt("llm") as a:
                seen.append(a.bot.id)
        assert sorted(seen) == ["a", "b", "b", "b"]
        with pytest.raises(NoBotLeft):
            async with degradation.attempt("llm"):
                pass


async def test_a_conversation_has_a_budget_of_its_own():
    async with manager(key_quota={"requests": 2, "per": "1d"}) as degradation:
        pool = degradation.pool("llm")
        for _ in range(2):
            async with degradation.attempt("llm", key="talk-1"):
                pass
        with pytest.raises(QuotaUsedUp, match="conversation"):
            async with degradation.attempt("llm", key="talk-1"):
                pass
        async with degradation.attempt("llm", key="talk-2"):
            pass
        assert all(one.in_flight == 0 for one in pool.status(0.0))


async def test_limits_are_learned_from_headers():
    async with manager(["a"]) as degradation:
        async with degradation.attempt("llm") as a:
            a.headers({"X-RateLimit-Remaining-Requests": "0", "X-RateLimit-Reset-Requests": "6m0s"})
        with pytest.raises(NoBotLeft) as caught:
            async with degradation.attempt("llm"):
                pass
        assert 300 < caught.value.retry_after <= 360


async def test_a_soft_failure_is_told_by_the_caller():
    async with manager() as degradation:
        answers = []

        async def send(a):
            answers.append(a.bot.id)
            if len(answers) == 1:
                a.failed("success is false")
            return a.bot.id

        assert await degradation.pool("llm").call(send) == answers[1]


async def test_a_bot_is_added_and_removed_at_run_time():
    async with manager([]) as degradation:
        pool = degradation.pool("llm")
        with pytest.raises(NoBotLeft):
            async with degradation.attempt("llm"):
                pass
        pool.add(Bot("new"))
        async with degradation.attempt("llm") as a:
            assert a.bot.id == "new"
        with pytest.raises(LookupError, match="there are: llm"):
            degradation.attempt("other")


async def test_a_call_waits_for_a_worker_that_holds_the_budgets_and_goes_on(tmp_path):
    """Another file's descriptor excludes as another process does."""
    settings = {"pools": {"llm": {"bots": [{"id": "a", "quota": "k"}], "quotas": {"k": {"requests": 1}}}}}
    async with running(silent, {"home": str(tmp_path), "degradation": settings}) as app:
        manager = app.service(DegradationManager)
        with (tmp_path / "state" / "budgets" / "lock").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            async with anyio.create_task_group() as group:
                group.start_soon(_free_later, other)
                async with manager.attempt("llm") as attempt:
                    assert attempt.bot.id == "a"
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(NoBotLeft, match="holds the budgets"):
                async with manager.attempt("llm"):
                    pass
        assert figures(manager.pool("llm"))["a"].in_flight == 0


async def _free_later(file):
    await anyio.sleep(0)
    fcntl.flock(file, fcntl.LOCK_UN)


async def test_the_status_tells_what_is_used_of_a_quota():
    async with manager([{"id": "a", "quota": "k"}], quotas={"k": {"tokens": 100, "requests": 5}}) as degradation:
        async with degradation.attempt("llm", tokens=60) as attempt:
            attempt.usage(tokens=30)
        assert degradation.status()["quotas"] == {"llm": {"k": {"requests": 1.0, "tokens": 30.0}}}
