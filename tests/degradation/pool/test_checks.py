"""Active checks: a bot that would not answer is out before a client finds out."""

from __future__ import annotations

from deia_degradation.pool.bot import Bot
from deia_degradation.pool.checks import Checker
from deia_degradation.pool.pool import Pool
from deia_degradation.settings import PoolSettings
from deia_hardening.upstream import Readiness


class Target:
    def __init__(self):
        self.answer = Readiness(True, "")

    async def ready(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def __call__(self, scope, receive, send):
        raise NotImplementedError


def pool_of(*ids):
    pool = Pool("bots", PoolSettings(), clock=lambda: 1000.0)
    for bot in ids:
        pool.add(Bot(bot, Target()))
    return pool


def states(pool):
    return {one.id: one.state for one in pool.status(1000.0)}


async def test_a_bot_that_fails_its_checks_is_out_and_comes_back_when_it_passes():
    pool = pool_of("a", "b")
    checker = Checker(pool)
    target = pool.member("a").target
    target.answer = Readiness(False, "connection refused")
    for _ in range(2):
        await checker.once()
        assert states(pool) == {"a": "serving", "b": "serving"}
    await checker.once()
    assert states(pool) == {"a": "ejected", "b": "serving"}
    target.answer = Readiness(True, "")
    await checker.once()
    assert states(pool) == {"a": "serving", "b": "serving"}


async def test_a_single_failed_check_is_forgotten():
    pool = pool_of("a", "b")
    checker = Checker(pool)
    for _ in range(5):
        for answer in (Readiness(False, "x"), Readiness(False, "x"), Readiness(True, "")):
            pool.member("a").target.answer = answer
            await checker.once()
    assert states(pool)["a"] == "serving"


async def test_the_last_bot_is_not_ejected_and_a_drained_one_not_restored():
    pool = pool_of("a", "b")
    checker = Checker(pool)
    pool.drain("b")
    pool.member("a").target.answer = OSError("boom")
    for _ in range(5):
        await checker.once()
    assert states(pool) == {"a": "serving", "b": "drained"}
