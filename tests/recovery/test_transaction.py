"""`transaction()`: several stores, one commit, and nobody is held up for ever."""

from __future__ import annotations

import asyncio

import pytest
import trio

from deia_recovery.errors import StaleRevision, TransactionEnded
from deia_recovery.stores.assignments import AlreadyAssigned, Assignments
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State
from deia_recovery.stores.tasks import TaskQueue
from deia_recovery.stores.transaction import transaction


async def test_all_of_it_or_nothing(state: State) -> None:
    jobs: TaskQueue[str] = TaskQueue("jobs", str, state=state)
    assigned = Assignments(state=state)
    await jobs.submit("x")
    with pytest.raises(RuntimeError, match="stop"):
        async with transaction(state=state):
            task = await jobs.claim("w")
            await assigned.assign(task.id, "bot-1")
            assert (await assigned.of(task.id)).bot == "bot-1"
            raise RuntimeError("stop")
    assert await assigned.all() == []
    assert (await jobs.stats()).ready == 1
    async with transaction(state=state):
        task = await jobs.claim("w")
        await assigned.assign(task.id, "bot-1")
    assert [a.task for a in await assigned.by_bot("bot-1")] == [task.id]
    assert (await jobs.stats()).leased == 1


async def test_what_is_open_is_seen_inside_and_not_outside(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    await numbers.put("a", 1)
    inside, go = asyncio.Event(), asyncio.Event()

    async def change() -> None:
        async with transaction(state=state):
            await numbers.put("a", 2)
            assert await numbers.get("a") == 2
            inside.set()
            await go.wait()

    task = asyncio.create_task(change())
    await inside.wait()
    assert await numbers.get("a") == 1
    go.set()
    await task
    assert await numbers.get("a") == 2


async def test_a_failed_step_may_be_caught_and_leaves_the_rest(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    async with transaction(state=state):
        await numbers.put("a", 1)
        with pytest.raises(StaleRevision):
            await numbers.put("a", 2, if_revision=99)
        await numbers.put("b", 3)
    assert dict(await numbers.items()) == {"a": 1, "b": 3}


async def test_one_that_stays_open_too_long_is_rolled_back_and_lets_others_go(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    with pytest.raises(TransactionEnded, match=r"open for more than 0\.05 s"):
        async with transaction(state=state, seconds=0.05):
            await numbers.put("a", 1)
            waiting = asyncio.create_task(_put(numbers, "b", 2))
            await asyncio.sleep(0)
            await asyncio.wait({waiting}, timeout=20)
    assert dict(await numbers.items()) == {"b": 2}


async def _put(numbers: Registry[int], key: str, value: int) -> None:
    from deia_recovery.stores.state import open_session

    open_session.set(None)
    await numbers.put(key, value)


async def test_an_inner_one_joins_the_outer(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    with pytest.raises(ValueError):
        async with transaction(state=state):
            async with transaction(state=state):
                await numbers.put("a", 1)
            raise ValueError
    assert await numbers.count() == 0


async def test_an_empty_one_costs_nothing(state: State) -> None:
    async with transaction(state=state):
        pass
    assert state.engine.groups == 0


def test_in_threads_and_on_trio(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    with transaction(state=state):
        numbers.put("a", 1).result(10)
        numbers.put("b", 2).result(10)

    async def main() -> None:
        async with transaction(state=state):
            await numbers.put("c", 3)

    trio.run(main)
    assert numbers.count().result(10) == 3


async def test_assignments_by_bot_and_by_task(state: State) -> None:
    assigned = Assignments(state=state)
    first = await assigned.assign("t1", "b1", note="fits")
    await assigned.assign("t2", "b1")
    assert (await assigned.assign("t1", "b1")).token == first.token
    with pytest.raises(AlreadyAssigned):
        await assigned.assign("t1", "b2")
    moved = await assigned.assign("t1", "b2", take_over=True)
    assert moved.token > first.token
    assert [a.task for a in await assigned.by_bot("b1")] == ["t2"]
    assert await assigned.release_bot("b1") == ["t2"]
    assert await assigned.release("t1") is True
    assert await assigned.release("t1") is False
