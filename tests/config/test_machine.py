"""A state machine: saves of every kind, overrides, roll-backs and refusing plugins in random order.

Invariants: a reader sees one whole revision (the values of one save go together), what was refused is never seen,
and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from functools import partial
from typing import Any

import pytest

from deia_hardening.plugin import Problem
from deia_hardening.runtime import runtime


def text(number: int, picky: str, value: int = 1, extra: str = "") -> str:
    """`label` and `max_bots` belong together: label is `n<max_bots>`."""
    app = f"app:\n  max_bots: {number}\n  label: n{number}\n"
    return f"config: {{cut_off: refuse}}\n{app}picky:\n  use: {picky}\n  value: {value}\n{extra}"


async def campaign(start: Any, picky: str, limits: Any, steps: int, seed: int, forced: bool = False) -> None:
    rng = random.Random(seed)
    torn: list[Any] = []
    reads = 0
    async with start(text(1, picky)) as service:
        core = service.run.core
        stop = threading.Event()

        def read_always() -> None:
            nonlocal reads
            while not stop.is_set():
                for _ in range(1000):
                    seen = core.revision.settings[limits]
                    if seen.label != f"n{seen.max_bots}":
                        torn.append(seen)
                    reads += 1
                stop.wait(0.002)

        reader = threading.Thread(target=read_always)
        reader.start()
        allowed = {1}
        number = 1
        try:
            for _ in range(steps):
                action = rng.choice(["rename", "in place", "refused", "broken", "plugin refuses", "half", "override"])
                number = number % 63 + 1
                if action == "rename":
                    allowed.add(number)
                    service.replace(text(number, picky))
                elif action == "in place":
                    allowed.add(number)
                    service.save(text(number, picky, 14 if rng.random() < 0.2 else 1))
                elif action == "refused":
                    service.replace(text(number + 1000, picky))
                elif action == "broken":
                    service.replace(text(number, picky) + "app: [\n")
                elif action == "plugin refuses":
                    service.replace(text(number, picky, 13))
                elif action == "half":
                    whole = text(number + 1000, picky)
                    service.save(whole[: rng.randrange(len(whole) // 2)])
                else:
                    with pytest.raises(Problem):
                        await service.manager.set("app.max_bots", 0)
                if forced and action not in ("half", "override"):  # a reload for each save, whatever comes of it
                    follower = core.plugins["config"].follower
                    fine = await runtime().run(partial(follower.look, force=True))
                    assert fine == (action in ("rename", "in place")), action
                await asyncio.sleep(rng.choice([0, 0.005, 0.03]))
                seen = core.revision.settings[limits]
                assert seen.max_bots in allowed, (action, seen)
            number = number % 63 + 1
            service.replace(text(number, picky))
            await service.until(lambda: core.revision.settings[limits].max_bots == number)
        finally:
            stop.set()
            reader.join()
        assert not torn, torn[:3]
        print(f"{reads} reads, {service.manager.revision} revisions")
        assert reads > (10**7 // 4 if steps == 3_600 else 1000)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "deia-config-watch"]


async def test_no_torn_read_and_nothing_refused_is_ever_seen(start: Any, picky: str, limits: Any) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    await campaign(start, picky, limits, 60, seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
async def test_ten_thousand_reloads_and_ten_million_reads(start: Any, picky: str, limits: Any, part: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    await campaign(start, picky, limits, 3_600, seed, forced=True)  # 2,500 of them are saves


async def test_every_save_is_a_reload_that_is_taken_or_refused(start: Any, picky: str, limits: Any) -> None:
    """A slice of the ten thousand."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    await campaign(start, picky, limits, 40, seed, forced=True)


async def test_requests_never_fail_while_reloads_go_on(start: Any, picky: str) -> None:
    """In one process, every answer from one revision; `test_minute.py` does it with a real server."""
    async with start(text(1, picky)) as service:
        done = asyncio.Event()
        answers: list[int] = []

        async def ask() -> None:
            while not done.is_set():
                body = await service.body()
                assert body["label"] == f"n{body['max_bots']}"
                answers.append(body["max_bots"])
                await asyncio.sleep(0.002)

        clients = [asyncio.create_task(ask()) for _ in range(3)]
        for number in range(2, 22):
            service.replace(text(number, picky))
            await asyncio.sleep(0.05)
        await service.until_bots(21)
        done.set()
        await asyncio.gather(*clients)
        assert len(answers) > 100
