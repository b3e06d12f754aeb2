"""`TaskQueue`: at least once, in order, fenced, by version, never in memory only."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import attrs
import pytest

from deia_hardening.events import BotChanged
from deia_hardening.testing import FakeClock, running
from deia_recovery.errors import LeaseLost, StateError, StateUnavailable, UnknownTask
from deia_recovery.stores import steps
from deia_recovery.stores.state import State
from deia_recovery.stores.tasks import TaskQueue


@pytest.fixture
def jobs(state: State) -> TaskQueue[dict[str, int]]:
    return TaskQueue("jobs", dict, lease=30, max_attempts=3, state=state)


async def test_higher_priority_first_then_in_order_of_submission(jobs: TaskQueue) -> None:
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        await jobs.submit({"name": name}, priority=priority)
    taken = [(await jobs.claim("w")).body["name"] for _ in range(4)]
    assert taken == ["b", "d", "a", "c"]
    assert await jobs.claim("w") is None


async def test_an_idempotency_key_is_one_task_even_when_done(jobs: TaskQueue) -> None:
    first = await jobs.submit({}, key="hook-1")
    again = await jobs.submit({"other": 1}, key="hook-1")
    assert (again.id, again.new) == (first.id, False)
    task = await jobs.claim("w")
    await task.complete({"ok": True})
    assert (await jobs.submit({}, key="hook-1")).new is False
    assert await jobs.result(first.id) == {"ok": True}


async def test_many_submitters_of_one_key_get_one_task(jobs: TaskQueue) -> None:
    async def one() -> str:
        return (await jobs.submit({}, key="same")).id

    assert len(set(await asyncio.gather(*[one() for _ in range(50)]))) == 1
    assert (await jobs.stats()).ready == 1


async def test_a_delayed_task_waits_for_its_time(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({}, delay=10)
    assert await jobs.claim("w") is None
    clock.advance(11)
    assert await jobs.claim("w") is not None


async def test_a_lease_that_ran_out_goes_to_the_next_and_fences_the_first(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({})
    slow = await jobs.claim("slow")
    await slow.checkpoint({"page": 7})
    clock.advance(31)
    fast = await jobs.claim("fast")
    assert (fast.id, fast.attempt, fast.state) == (slow.id, 2, {"page": 7})
    assert fast.token > slow.token
    for call in (slow.heartbeat, slow.complete, slow.release, lambda: slow.emit(1), lambda: slow.fail("x")):
        with pytest.raises(LeaseLost):
            await call()
    await fast.complete()


async def test_heartbeats_keep_a_lease(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({})
    task = await jobs.claim("w")
    for _ in range(5):
        clock.advance(20)
        assert await task.heartbeat() is True
        assert await jobs.claim("other") is None


async def test_attempts_run_out_into_dead_letters_and_can_be_retried(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({"n": 1})
    for attempt in range(3):
        task = await jobs.claim("w")
        assert task.attempt == attempt + 1
        state = await task.fail(ValueError("boom"), retry_in=5)
        clock.advance(6)
    assert state == "dead"
    (letter,) = await jobs.dead()
    assert letter.error == "ValueError: boom"
    await jobs.retry(letter.id)
    assert (await jobs.claim("w")).attempt == 1


async def test_a_crashing_worker_uses_up_attempts_too(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({})
    for _ in range(3):
        assert await jobs.claim("w") is not None
        clock.advance(31)
    assert await jobs.claim("w") is None
    assert (await jobs.stats()).dead == 1


async def test_a_task_that_brings_the_service_down_each_time_is_a_dead_letter(state: State, jobs: TaskQueue) -> None:
    first = await jobs.submit({}, conversation="c")
    await jobs.submit({"n": 2}, conversation="c")
    for attempt in (1, 2, 3):
        assert (await jobs.claim("w")).attempt == attempt
        await state.write(steps.release_all)
    assert [(one.id, one.error) for one in await jobs.dead()] == [
        (first.id, "attempt 3 of 3: the service ended while it ran")
    ]
    assert (await jobs.claim("w")).body == {"n": 2}


async def test_what_was_to_be_cancelled_is_not_run_again_when_it_is_given_back(state: State, jobs: TaskQueue) -> None:
    for give_back in (lambda task: task.release(), lambda task: state.write(lambda tx: steps.release_bot(tx, "b"))):
        await jobs.submit({})
        task = await jobs.claim("w", bot="b")
        await jobs.cancel(task.id)
        await give_back(task)
        assert (await jobs.get(task.id)).state == "cancelled"
        assert await jobs.claim("w") is None


async def test_the_head_of_a_conversation_that_was_parked_goes_first_when_it_is_retried(state: State) -> None:
    anything: TaskQueue = TaskQueue("jobs", state=state)
    first = await anything.submit("one", conversation="c")
    await anything.submit(2, conversation="c")
    assert await TaskQueue("jobs", int, state=state).claim("w") is None
    assert (await anything.get(first.id)).state == "parked"
    assert await anything.retry(first.id) == "ready"
    task = await anything.claim("w")
    assert (task.body, await anything.claim("w")) == ("one", None)
    await task.complete()
    assert (await anything.claim("w")).body == 2


async def test_a_task_that_was_retried_waits_for_the_one_that_runs_whoever_of_the_others_ends(jobs: TaskQueue) -> None:
    first = await jobs.submit({"n": 1}, conversation="c")
    await jobs.cancel(first.id)
    await jobs.submit({"n": 2}, conversation="c")
    last = await jobs.submit({"n": 3}, conversation="c")
    running = await jobs.claim("w")
    assert await jobs.retry(first.id) == "held"
    await jobs.cancel(last.id)
    assert await jobs.claim("w") is None
    await running.complete()
    assert (await jobs.claim("w")).body == {"n": 1}


async def test_release_does_not_count_as_an_attempt(jobs: TaskQueue) -> None:
    await jobs.submit({})
    for _ in range(10):
        task = await jobs.claim("w")
        assert task.attempt == 1
        await task.release()


async def test_a_conversation_runs_one_at_a_time_in_order(jobs: TaskQueue) -> None:
    for i in range(3):
        await jobs.submit({"i": i}, conversation="chat-1", priority=i)
    await jobs.submit({"i": 9}, conversation="chat-2")
    first = await jobs.claim("w")
    other = await jobs.claim("w")
    assert (first.body["i"], other.body["i"]) == (0, 9)
    assert await jobs.claim("w") is None
    await first.fail("again")
    assert (await jobs.claim("w")).body["i"] == 0


async def test_what_ends_a_conversations_head_lets_the_next_go(jobs: TaskQueue) -> None:
    ids = [(await jobs.submit({"i": i}, conversation="c")).id for i in range(4)]
    head = await jobs.claim("w")
    await head.complete()
    await jobs.cancel(ids[1])
    third = await jobs.claim("w")
    assert third.body["i"] == 2
    await third.fail("x", final=True)
    assert (await jobs.claim("w")).body["i"] == 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_worker_that_is_cancelled_while_it_claims_takes_no_task_with_it(
    jobs: TaskQueue[dict[str, int]], backend: str
) -> None:
    async def give_up_at_once(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            task = await jobs.claim("hasty", wait=30)
            if task is not None:  # it was quick enough
                await task.release()  # written also when the time is over now

    async def main() -> None:
        task = await jobs.submit({"n": 1})
        for number in range(40):
            await give_up_at_once(number / 10_000)
        with anyio.fail_after(20):
            taken = await jobs.claim("patient", wait=20)
        assert taken is not None
        assert (taken.id, taken.attempt) == (task.id, 1)

    anyio.run(main, backend=backend)


async def test_cancel_takes_a_waiting_task_and_asks_a_running_one(jobs: TaskQueue) -> None:
    waiting = await jobs.submit({})
    assert await jobs.cancel(waiting.id) == "cancelled"
    running = await jobs.submit({})
    task = await jobs.claim("w")
    assert await jobs.cancel(running.id) == "leased"
    assert await task.heartbeat() is False
    assert await task.fail("stopped") == "cancelled"
    with pytest.raises(UnknownTask):
        await jobs.cancel("nothing")


async def test_expired_tasks_are_not_run(jobs: TaskQueue, clock: FakeClock) -> None:
    task = await jobs.submit({}, expires=5)
    clock.advance(6)
    assert await jobs.claim("w") is None
    assert (await jobs.get(task.id)).state == "expired"


async def test_events_are_numbered_and_followed_to_the_end(jobs: TaskQueue) -> None:
    submitted = await jobs.submit({})
    task = await jobs.claim("w")
    seen: list[tuple[int, object]] = []

    async def watch() -> None:
        async for event in jobs.follow(submitted.id, after=1):
            seen.append((event.number, event.value))

    watcher = asyncio.create_task(watch())
    for i in range(4):
        assert await task.emit({"step": i}) == i + 1
    await task.complete()
    await asyncio.wait_for(watcher, 20)
    assert seen == [(2, {"step": 1}), (3, {"step": 2}), (4, {"step": 3})]


async def test_a_body_that_can_not_be_read_is_parked_and_the_next_is_taken(state: State, jobs: TaskQueue) -> None:
    @attrs.frozen
    class Job:
        url: str

    await jobs.submit({"nourl": 1})
    typed: TaskQueue[Job] = TaskQueue("jobs", Job, state=state)
    await typed.submit(Job("u"))
    assert (await typed.claim("w")).body == Job("u")
    assert (await jobs.stats()).parked == 1
    (parked,) = await jobs.list("parked")
    await jobs.retry(parked.id)
    assert (await jobs.claim("w")).body == {"nourl": 1}


class Half:
    def version_for(self, key: str) -> str:
        return "new" if key < "m" else "old"

    def may_claim(self, key: str, claimer: str, pinned: str) -> bool:
        return (pinned or self.version_for(key)) == (claimer or "old")


async def test_claims_go_by_the_version_split_and_pin_the_task(state: State, clock: FakeClock) -> None:
    state.split = Half
    jobs: TaskQueue[str] = TaskQueue("jobs", str, lease=30, state=state)
    for key in ("a", "z"):
        await jobs.submit(key, split_key=key)
    assert (await jobs.claim("w", version="new")).body == "a"
    assert await jobs.claim("w", version="new") is None
    assert (await jobs.claim("w")).body == "z"
    clock.advance(31)
    again = await jobs.claim("w", version="new")
    assert (again.body, again.version) == ("a", "new")


async def test_an_ejected_bots_leases_are_released(state: State, jobs: TaskQueue) -> None:
    for _ in range(3):
        await jobs.submit({})
    mine = [await jobs.claim("w", bot="b1") for _ in range(2)]
    await jobs.claim("w", bot="b2")
    assert await state.write(lambda tx: steps.release_bot(tx, "b1")) == 2
    assert (await jobs.stats()).ready == 2
    with pytest.raises(LeaseLost):
        await mine[0].complete()


@pytest.mark.parametrize("word", ["ejected", "drained", "removed"])
async def test_a_bot_that_leaves_its_pool_gives_its_tasks_back(home: Path, word: str) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        return None

    async with running(app, {"home": str(home), "recovery": {"reserve": "0", "snapshots": []}}) as up:
        queue: TaskQueue[int] = TaskQueue("jobs", int)
        await queue.submit(1)
        task = await queue.claim("w", bot="b1")
        assert task is not None
        up.core.events.emit(BotChanged(pool="p", bot="b1", state=word))
        with anyio.fail_after(20):
            while (await queue.get(task.id)).state != "ready":
                await anyio.sleep(0.01)
        with pytest.raises(LeaseLost):
            await task.complete()


async def test_a_waiting_claim_is_woken_by_a_submission(jobs: TaskQueue) -> None:
    waiting = asyncio.create_task(jobs.claim("w", wait=30))
    await asyncio.sleep(0.02)
    await jobs.submit({"x": 1})
    assert (await asyncio.wait_for(waiting, 20)).body == {"x": 1}


async def test_nothing_is_accepted_while_a_restore_goes_on(state: State, jobs: TaskQueue) -> None:
    state.closed_for = "a restore is going on"
    with pytest.raises(StateUnavailable, match="restore"):
        await jobs.submit({})


async def test_an_endless_log_is_refused(state: State) -> None:
    jobs: TaskQueue[int] = TaskQueue("jobs", int, max_events=2, state=state)
    await jobs.submit(1)
    task = await jobs.claim("w")
    await task.emit(1)
    await task.emit(2)
    with pytest.raises(StateError, match="limit"):
        await task.emit(3)


async def test_a_wall_clock_set_back_stops_neither_leases_nor_delays(jobs: TaskQueue, clock: FakeClock) -> None:
    await jobs.submit({"n": 1})
    first = await jobs.claim("w1")
    clock.jump(-86_400)
    await jobs.submit({"n": 2}, delay=10, priority=1)
    assert await jobs.claim("w2") is None
    clock.advance(11)
    assert (await jobs.claim("w2")).body == {"n": 2}
    clock.advance(20)
    again = await jobs.claim("w3")
    assert (again.body, again.attempt) == ({"n": 1}, 2)
    with pytest.raises(LeaseLost):
        await first.complete()


async def test_a_wall_clock_set_forward_and_back_loses_and_doubles_nothing(jobs: TaskQueue, clock: FakeClock) -> None:
    for n in range(3):
        await jobs.submit({"n": n})
    held = await jobs.claim("w1")
    clock.jump(86_400 * 365)
    taken = [await jobs.claim("w2") for _ in range(3)]
    assert sorted(task.body["n"] for task in taken) == [0, 1, 2]
    with pytest.raises(LeaseLost):
        await held.complete()
    clock.jump(-86_400 * 365)
    clock.advance(31)
    assert sorted([(await jobs.claim("w3")).body["n"] for _ in range(3)]) == [0, 1, 2]
    for task in taken:
        with pytest.raises(LeaseLost):
            await task.heartbeat()
