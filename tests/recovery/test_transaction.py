"""`transaction()`: several stores, one commit, and nobody is held up for ever."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
import trio

from deia_recovery.errors import StaleRevision, StateUnavailable, TransactionEnded
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


async def test_an_inner_one_that_fails_is_undone_alone(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    async with transaction(state=state):
        await numbers.put("before", 1)
        with pytest.raises(RuntimeError):
            async with transaction(state=state):
                await numbers.put("inner", 2)
                await numbers.put("before", 3)
                raise RuntimeError
        assert await numbers.get("before") == 1
        async with transaction(state=state), transaction(state=state):
            await numbers.put("deep", 4)
        with pytest.raises(RuntimeError):
            async with transaction(state=state):
                raise RuntimeError("before its first step")
        await numbers.put("after", 5)
    assert dict(await numbers.items()) == {"before": 1, "deep": 4, "after": 5}
    ends = await state.engine.read(lambda c: c.execute("SELECT position FROM changes ORDER BY 1").fetchall())
    assert await numbers.put("next", 6) == ends[-1][0] + 1


async def test_inner_ones_side_by_side_are_kept_together_or_not_at_all(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)

    async def inner(name: str, meet: asyncio.Barrier, fail: bool) -> None:
        async with transaction(state=state):
            await numbers.put(name, 1)
            await meet.wait()
            await numbers.put(f"{name}2", 1)
            await meet.wait()
            if fail:
                raise RuntimeError("stop")

    async def both(fail: bool) -> None:
        meet = asyncio.Barrier(2)
        async with transaction(state=state):
            await asyncio.gather(inner("a", meet, False), inner("b", meet, fail), return_exceptions=True)

    await both(False)
    assert await numbers.count() == 4
    for key in await numbers.list():
        await numbers.delete(key)
    with pytest.raises(TransactionEnded, match="overlapped"):
        await both(True)
    assert await numbers.count() == 0


async def test_what_was_begun_inside_and_outlives_it_writes_for_itself(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    go = asyncio.Event()

    async def later() -> int | None:
        await go.wait()
        await numbers.put("later", 1)
        return await numbers.get("later")

    async with transaction(state=state):
        await numbers.put("a", 1)
        task = asyncio.create_task(later())
    go.set()
    assert await asyncio.wait_for(task, 20) == 1


@pytest.mark.parametrize("when", ["between", "in a step", "waiting for its turn"])
async def test_cancelled_on_asyncio_it_keeps_nothing_and_lets_others_go(state: State, when: str) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    reached, hold = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with transaction(state=state):
            await numbers.put("a", 1)
            reached.set()
            if when == "between":
                await hold.wait()
            for i in range(100_000):
                await numbers.put("b", i)

    async def other() -> None:
        async with transaction(state=state):
            await numbers.put("held", 1)
            reached.set()
            await hold.wait()

    holder = asyncio.create_task(other()) if when == "waiting for its turn" else None
    if holder is not None:
        await reached.wait()
    task = asyncio.create_task(work())
    await reached.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.set()
    if holder is not None:
        await holder
    await asyncio.wait_for(_put_c(numbers), 20)
    assert sorted(await numbers.list()) == (["c", "held"] if holder is not None else ["c"])


async def _put_c(numbers: Registry[int]) -> None:
    await numbers.put("c", 1)


def test_cancelled_on_trio_it_keeps_nothing_and_lets_others_go(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)

    async def main() -> None:
        with trio.move_on_after(0.05) as scope:
            async with transaction(state=state):
                await numbers.put("a", 1)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with trio.fail_after(20):
            await numbers.put("c", 1)

    trio.run(main)
    assert numbers.list().result(10) == ["c"]


async def test_a_thread_of_the_transactions_task_takes_part_in_it(state: State) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    with pytest.raises(RuntimeError, match="stop"):
        async with transaction(state=state):
            await asyncio.to_thread(lambda: numbers.put("from a thread", 1).result(10))
            assert await numbers.get("from a thread") == 1
            raise RuntimeError("stop")
    assert await numbers.count() == 0


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.OperationalError("database or disk is full"),
        SystemExit(),
    ],
)
async def test_a_step_in_which_the_disk_fails_is_told_so_and_not_left_waiting(
    state: State, error: BaseException
) -> None:
    registry: Registry[int] = Registry("r", int, state=state)

    def failing(old: int | None) -> int:
        raise error

    async with asyncio.timeout(20):
        with pytest.raises(StateUnavailable):
            async with transaction(state=state):
                await registry.put("a", 1)
                await registry.update("a", failing)
        assert await registry.get("a") is None
        await registry.put("b", 2)
