"""Those who wait for records: tasks of asyncio and trio, on loops that end, who leave one by one or all at once."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest
import trio


async def test_durable_under_asyncio_from_many_tasks(opened) -> None:
    journal = opened(durability="sync")

    async def one(number: int) -> int:
        receipt = journal.append({"n": number})
        await receipt.durable()
        assert receipt.seq is not None
        return receipt.seq

    seqs = await asyncio.gather(*(one(number) for number in range(200)))
    assert sorted(seqs) == list(range(1, 201))
    assert journal.stats().syncs < 200  # they shared syncs


def test_durable_under_trio(opened) -> None:
    journal = opened(durability="batch")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(journal.append({"n": number}).durable)

    trio.run(main)
    assert journal.durable_through >= 20


def test_a_waiter_whose_loop_is_gone_is_dropped(opened) -> None:
    journal = opened(durability="sync")
    held = journal._writer.role
    loop = asyncio.new_event_loop()
    with held:
        receipt = journal.append({"n": 1})
        task = loop.create_task(receipt.durable())
        loop.run_until_complete(asyncio.sleep(0))
        task.get_coro().close()  # the loop goes away in the middle of waiting
        asyncio.tasks._unregister_task(task) if hasattr(asyncio.tasks, "_unregister_task") else None
        loop.close()
        task._log_destroy_pending = False
    assert journal.append({"n": 2}).wait(10)
    assert receipt.done()


async def test_a_cancelled_waiter_leaves_nothing_behind(opened) -> None:
    journal = opened(durability="batch", sync_interval=60, write_interval=0.5)
    receipt = journal.append({"n": 1})
    with journal._writer.role:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receipt.durable(), 0.01)
        assert not journal._waiters
    await receipt.durable()


async def test_leaving_costs_the_same_however_many_wait(opened) -> None:
    """A disk stalls, thousands wait, and their clients go: each leaves in its own time, not in that of all."""

    async def steps(waiting: int) -> int:
        journal = opened(durability="batch", sync_interval=60, write_interval=60)
        futures = [asyncio.get_running_loop().create_future() for _ in range(waiting)]
        count = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            frame.f_trace_opcodes = True
            count += event == "opcode"
            return trace

        with journal._writer.role:
            for future in futures:
                assert journal._enlist(journal.append({"n": 1}), future.get_loop(), future)
            before = sys.gettrace()
            sys._getframe().f_trace_opcodes = True  # 3.12 asks when tracing begins whether any frame has it
            sys.settrace(trace)
            try:
                journal._delist(futures[waiting // 2])
            finally:
                sys.settrace(before)
            assert len(journal._waiters) == waiting - 1
        return count

    few, many = await steps(10), await steps(500)
    assert 0 < many == few
