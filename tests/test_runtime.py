"""Latches wake waiters on their own loop, the background loop serves all, and a forked child starts anew."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import anyio
import pytest

from deia_hardening.runtime import Completion, Latch, Threads, runtime


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_latch_wakes_waiters_of_several_loops(backend: str) -> None:
    latch = Latch()
    woken: list[int] = []

    def one(index: int) -> None:
        async def main() -> None:
            with anyio.fail_after(20):
                await latch.wait()
            woken.append(index)

        anyio.run(main, backend=backend)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    while len(latch._waiters) < 4:
        time.sleep(0.001)
    latch.set()
    for thread in threads:
        thread.join()
    assert sorted(woken) == [0, 1, 2, 3]
    assert latch.wait_blocking(0)


def test_a_waiter_whose_loop_is_gone_is_dropped() -> None:
    latch = Latch()

    async def main() -> None:
        task = asyncio.create_task(latch.wait())
        await asyncio.sleep(0)
        assert not task.done()
        tasks.append(task)

    tasks: list[object] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    latch.set()
    assert latch.is_set()
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    latch = Latch()
    with anyio.move_on_after(0.01):
        await latch.wait()
    assert latch._waiters == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_work_on_the_background_loop_is_awaited_from_any_loop(backend: str) -> None:
    async def work(value: int) -> tuple[int, bool]:
        return value + 1, runtime().is_current()

    async def fails() -> None:
        raise ValueError("no")

    async def main() -> None:
        assert await runtime().submit(work, 1) == (2, True)
        assert await runtime().run(work, 2) == (3, True)
        assert await runtime().blocking(threading.current_thread) is not threading.current_thread()
        with pytest.raises(ValueError, match="no"):
            await runtime().submit(fails)

    anyio.run(main, backend=backend)


def test_idle_threads_end() -> None:
    threads = Threads(limit=3, idle=0.01)
    completions: list[Completion[int]] = [threads.submit(lambda n: n * 2, n) for n in range(20)]
    assert [completion.result(10) for completion in completions] == [n * 2 for n in range(20)]
    deadline = time.monotonic() + 10
    while threads._count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert threads._count == 0


def test_a_forked_child_has_a_background_loop_of_its_own() -> None:
    async def pid() -> int:
        return os.getpid()

    assert runtime().submit(pid).result(10) == os.getpid()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = runtime().submit(pid).result(10)
            os.write(write, b"1" if found == os.getpid() else b"0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)
