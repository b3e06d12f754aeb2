"""Who commits, and in which groups: nobody waits for what was forgotten, and a quick way is no other way."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deia_recovery.engine.batch import MOST
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.generation import create_first
from deia_recovery.engine.jobs import Entry
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateUnavailable
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State
from deia_recovery.stores.transaction import transaction


def entry(engine: Engine, key: str, data: bytes = b"1") -> Entry:
    return engine.enter(Entry("s", key, data, None, None))


def rows(engine: Engine) -> dict[str, tuple[bytes, int]]:
    found = engine.read_here(lambda c: c.execute("SELECT key, value, revision FROM registry").fetchall())
    return {key: (value, revision) for key, value, revision in found}


async def test_a_transaction_that_was_rolled_back_lets_other_workers_write(engine: Engine, state: State) -> None:
    with pytest.raises(ZeroDivisionError):
        async with transaction(state=state):
            await Registry("r", int, state=state).put("a", 1)
            raise ZeroDivisionError
    await asyncio.to_thread(engine.read_here, lambda c: None)
    turn = FileLock(engine.folder / "turn.lock")  # what another worker waits for
    while not turn.try_acquire():
        await asyncio.sleep(0.001)  # the block may be left before the writer has rolled back
    turn.close()


@pytest.mark.blocking
def test_what_nobody_waits_for_is_written_all_the_same(engine: Engine) -> None:
    for number in range(20):
        entry(engine, f"k{number}")
    waiting = threading.Event()
    while len(rows(engine)) < 20:
        waiting.wait(0.005)


@pytest.mark.blocking
def test_a_plain_thread_commits_itself_and_never_runs_what_others_gave(engine: Engine) -> None:
    ran: dict[str, str] = {}
    hold, held = threading.Event(), threading.Event()

    def slow(tx: object) -> None:
        ran["slow"] = threading.current_thread().name
        held.set()
        hold.wait(10)

    def mine(tx: object) -> None:
        ran["mine"] = threading.current_thread().name

    def other() -> None:
        engine.write(mine).result(10)
        entry(engine, "a").result(10)

    first = engine.write(slow)
    first._writer.ring()  # type: ignore[union-attr]
    held.wait(10)
    thread = threading.Thread(target=other, name="caller")
    thread.start()
    hold.set()
    thread.join(10)
    first.result(10)
    assert ran["slow"] == "deia-state"
    assert rows(engine)["a"][0] == b"1"


@pytest.mark.blocking
def test_threads_and_loops_at_once_lose_no_write(engine: Engine) -> None:
    async def on_a_loop(name: str) -> None:
        await asyncio.gather(*[entry_and_wait(f"{name}-{i}") for i in range(60)])

    async def entry_and_wait(key: str) -> None:
        await entry(engine, key)

    def in_a_thread(name: str) -> None:
        for i in range(60):
            entry(engine, f"{name}-{i}").result(30)

    threads = [threading.Thread(target=in_a_thread, args=(f"t{i}",)) for i in range(4)]
    threads += [threading.Thread(target=lambda i=i: asyncio.run(on_a_loop(f"l{i}"))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = rows(engine)
    assert len(found) == 7 * 60
    assert sorted(revision for _, revision in found.values()) == list(range(1, 7 * 60 + 1))


@pytest.mark.blocking
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.binary(max_size=9000)), min_size=1, max_size=40))
def test_a_group_of_any_size_is_what_its_writes_are_one_by_one(engine: Engine, script: list[tuple[str, bytes]]) -> None:
    last = [entry(engine, key, data) for key, data in script]
    revisions = [one.result(30) for one in last]
    assert revisions == list(range(revisions[0], revisions[0] + len(script)))
    expected = {key: (data, revision) for (key, data), revision in zip(script, revisions, strict=True)}
    assert {key: value for key, value in rows(engine).items() if key in expected} == expected
    assert all(engine.cached(("s", key)) == value for key, value in expected.items())


@pytest.mark.blocking
def test_a_group_larger_than_a_statement_takes_is_written_too(root: Path) -> None:
    from deia_recovery.engine.generation import create_first

    engine = Engine(create_first(root).folder, EngineOptions(reserve=0, group=4 * MOST, idle=0.2))
    hold = threading.Event()
    first = engine.write(lambda tx: hold.wait(10) and None)
    first._writer.ring()  # type: ignore[union-attr]
    many = [entry(engine, f"k{i}") for i in range(3 * MOST)]
    hold.set()
    assert len({one.result(30) for one in many}) == 3 * MOST
    assert len(rows(engine)) == 3 * MOST
    engine.close()


def turn_is_free(engine: Engine) -> bool:
    """Whether another worker could write now."""
    locks = [FileLock(engine.folder / name) for name in ("queue.lock", "turn.lock")]
    try:
        return all(lock.try_acquire() for lock in locks)
    finally:
        for lock in locks:
            lock.close()


@pytest.mark.blocking
def test_a_start_ahead_waits_for_nobody_and_keeps_nothing(engine: Engine) -> None:
    entry(engine, "a").result(10)
    with engine._writer._lead:
        for name in ("queue.lock", "turn.lock"):
            other = FileLock(engine.folder / name)
            other.acquire()  # another worker is next, or writes
            assert engine.start_ahead() is None
            other.close()
            assert turn_is_free(engine)
        os.utime(engine.folder.parent / "current", ns=(1, 1))  # another generation was put in force
        assert engine.start_ahead() is None
        assert turn_is_free(engine)


@pytest.mark.blocking
def test_a_commit_that_was_begun_ahead_fails_for_its_own_writes_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = create_first(root)
    engine = Engine(generation.folder, EngineOptions(reserve=0, idle=0.2, group=1))
    ahead: list[bool] = []
    start_ahead, commit_entries = engine.start_ahead, engine.commit_entries

    def starting() -> object:
        started = start_ahead()
        ahead.append(started is not None)
        return started

    def failing(connection: sqlite3.Connection, tx: Tx, group: list[Entry]) -> None:
        if group[0].key == "b":
            raise sqlite3.OperationalError("disk I/O error")
        commit_entries(connection, tx, group)

    monkeypatch.setattr(engine, "start_ahead", starting)
    monkeypatch.setattr(engine, "commit_entries", failing)
    entry(engine, "before").result(10)
    with engine._writer._lead:  # so that all three wait when the first is committed
        waiting = [entry(engine, key) for key in "abc"]
    assert waiting[0].result(10)
    with pytest.raises(StateUnavailable):
        waiting[1].result(10)
    assert waiting[2].result(10)
    assert True in ahead
    assert rows(engine).keys() == {"before", "a", "c"}
    engine.close()
    assert turn_is_free(engine)


async def test_other_workers_have_their_turn_after_many_writers_at_once(engine: Engine, state: State) -> None:
    registry: Registry[int] = Registry("r", int, state=state)
    for value in range(10):
        await asyncio.gather(*[registry.put(f"k{n}", value) for n in range(100)])
        if value % 3 == 0:
            async with transaction(state=state):
                await registry.put("k0", -value)
    while not await asyncio.to_thread(turn_is_free, engine):  # the last commit may still be telling of itself
        await asyncio.sleep(0.001)
    assert await registry.get("k99") == 9


@pytest.mark.blocking
def test_a_failure_after_the_acknowledgement_ends_nothing_but_itself(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(tx: Tx) -> None:
        raise RuntimeError("can't start new thread")

    engine.committed.append(failing)
    for number in range(3):
        assert engine.write(lambda tx, n=number: tx.put_registry("s", "a", b"%d" % n)).result(10) == number + 1
    assert "could not be told of" in caplog.text


@pytest.mark.blocking
@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
def test_a_function_that_raises_what_ends_threads_ends_its_own_write_only(
    engine: Engine, error: type[BaseException]
) -> None:
    def ending(tx: Tx) -> None:
        tx.put_registry("s", "half", b"1")
        raise error

    with pytest.raises(StateUnavailable, match="interrupted"):
        engine.write(ending).result(10)
    assert entry(engine, "a").result(10)
    assert rows(engine).keys() == {"a"}
