"""The engine's promises: groups, isolation of failures, truth of the cache, nothing held while idle, forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from deia_recovery.engine.connections import connect
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.pages import PageSums, verify_live
from deia_recovery.engine.wal import read_wal
from deia_recovery.errors import StateUnavailable


def value(engine: Engine, key: str) -> bytes | None:
    def read(connection: sqlite3.Connection) -> bytes | None:
        row = connection.execute("SELECT value FROM registry WHERE store = 's' AND key = ?", (key,)).fetchone()
        return row[0] if row else None

    return engine.read_here(read)


async def test_an_acknowledged_write_is_in_the_file_for_every_other_connection(engine: Engine) -> None:
    await engine.write(lambda tx: tx.put_registry("s", "a", b"1"))
    other = sqlite3.connect(engine.database)
    assert other.execute("SELECT value FROM registry").fetchall() == [(b"1",)]
    other.close()


async def test_writes_that_queue_together_commit_together_each_with_its_own_result(engine: Engine) -> None:
    first = engine.write(lambda tx: time.sleep(0.05))
    others = [engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", b"x") and i) for i in range(50)]
    await first
    assert [await one for one in others] == list(range(50))
    assert engine.groups <= 3


async def test_a_write_that_fails_half_way_leaves_nothing_and_spoils_no_other(engine: Engine) -> None:
    def bad(tx: object) -> None:
        tx.put_registry("s", "bad", b"x")  # type: ignore[attr-defined]
        raise ValueError("no")

    hold = engine.write(lambda tx: time.sleep(0.05))
    good = engine.write(lambda tx: tx.put_registry("s", "good", b"1"))
    failed = engine.write(bad)
    late = engine.write(lambda tx: tx.put_registry("s", "late", b"1"))
    await hold
    assert await good
    assert await late
    with pytest.raises(ValueError, match="no"):
        await failed
    found = [await asyncio.to_thread(value, engine, key) for key in ("bad", "good", "late")]
    assert found == [None, b"1", b"1"]


async def test_positions_and_the_change_log_have_no_gap(engine: Engine) -> None:
    for i in range(5):
        await engine.write(lambda tx, i=i: [tx.put_registry("s", f"{i}{j}", b"") for j in range(3)])
    from deia_recovery.engine.engine import decode_ops

    rows = await engine.read(lambda c: c.execute("SELECT position, ops FROM changes ORDER BY position").fetchall())
    start = 0
    for position, ops in rows:
        assert position - len(decode_ops(ops)) == start
        start = position
    assert start == 15 == engine.peek()


def test_threads_may_write_and_wait(engine: Engine) -> None:
    done: list[int] = []

    def work(i: int) -> None:
        done.append(engine.write(lambda tx: tx.put_registry("s", f"t{i}", b"")).result(10))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 9))


def test_trio_may_write_and_wait(engine: Engine) -> None:
    async def main() -> int:
        return await engine.write(lambda tx: tx.put_registry("s", "trio", b""))

    assert trio.run(main) == 1


def test_several_loops_at_once_are_woken_each_on_its_own(engine: Engine) -> None:
    async def main(i: int) -> list[int]:
        return [await engine.write(lambda tx: tx.put_registry("s", f"l{i}", b"")) for _ in range(20)]

    results: list[list[int]] = []
    threads = [threading.Thread(target=lambda i=i: results.append(asyncio.run(main(i)))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p for r in results for p in r) == list(range(1, 81))


async def test_result_on_a_loop_says_to_await(engine: Engine) -> None:
    hold = engine.write(lambda tx: time.sleep(0.05))
    with pytest.raises(RuntimeError, match="await it"):
        engine.write(lambda tx: tx.put_registry("s", "x", b"")).result()
    await hold


async def test_an_idle_engine_holds_no_thread_and_no_descriptor_and_comes_back(engine: Engine) -> None:
    await engine.write(lambda tx: tx.put_registry("s", "a", b"1"))
    await engine.read(lambda c: None)
    deadline = time.monotonic() + 20
    while engine._thread is not None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in held if str(engine.folder) in path]
    assert engine._thread is None
    assert await engine.write(lambda tx: tx.put_registry("s", "a", b"2")) == 2


async def test_closing_never_moves_the_log_without_its_digests(engine: Engine) -> None:
    for i in range(200):
        await engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", os.urandom(200)))
    await asyncio.to_thread(engine.close)
    wal = engine.database.with_name("state.db-wal")
    assert wal.stat().st_size > 0
    assert (await asyncio.to_thread(verify_live, engine.database)).ok
    await asyncio.to_thread(engine.checkpoints.run, wait=True)
    await asyncio.to_thread(engine.close)
    assert (await asyncio.to_thread(verify_live, engine.database)).ok
    assert not PageSums(engine.database).next_path.exists()


@pytest.mark.blocking
def test_two_that_close_at_once_never_move_the_log_without_its_digests(engine: Engine) -> None:
    """A write that fails closes the writer's connection while a checkpoint may be closing its own two."""
    engine.write(lambda tx: tx.put_registry("s", "k", os.urandom(200))).result(30)
    connections = engine.connections
    other = connect(engine.database)
    other.execute("SELECT 1 FROM meta").fetchone()
    writer = connections.writer
    assert writer is not None
    closing = threading.Thread(target=connections.close_one, args=(other,))

    class Last:
        """Closes after the other one, if that gets so far."""

        def close(self) -> None:
            closing.start()
            closing.join(0.3)
            assert writer is not None
            writer.close()

    with engine.kept_open():
        connections.writer = None
        connections.close_one(Last())  # type: ignore[arg-type]
        closing.join(30)
    engine.close()
    assert engine.database.with_name("state.db-wal").exists()
    assert verify_live(engine.database).ok


async def test_checkpoints_under_load_keep_every_page_accounted_for(root: Path, engine: Engine) -> None:
    engine.options = EngineOptions(reserve=0, log_limit=1 << 17)
    for _ in range(30):
        await asyncio.gather(
            *[engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", os.urandom(300))) for i in range(60)]
        )
    await asyncio.to_thread(engine.close)
    verdict = await asyncio.to_thread(verify_live, engine.database)
    assert verdict.ok, verdict.problems
    assert not engine.checkpoints.problems


@pytest.mark.blocking
def test_writers_wait_for_the_rest_of_a_checkpoint_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    announce, turn, left = engine.checkpoints._announce, engine.turn, []

    def beside(*given: Any) -> Any:
        announced = announce(*given)
        for i in range(300):  # committed while the announcement was made
            engine.write(lambda tx, i=i: tx.put_registry("s", f"late-{i}", os.urandom(4000)))
        engine.write(lambda tx: None).result(20)
        return announced

    @contextlib.contextmanager
    def taken() -> Iterator[None]:
        with turn():
            left.append(engine.connections.log_bytes())
            yield

    for i in range(20):
        engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", os.urandom(300))).result(10)
    monkeypatch.setattr(engine.checkpoints, "_announce", beside)
    monkeypatch.setattr(engine, "turn", taken)
    assert engine.checkpoints.run(wait=True)
    assert left[-1] < 256 << 10
    engine.close()
    verdict = verify_live(engine.database)
    assert verdict.ok, verdict.problems


async def test_a_reader_follows_what_another_process_commits(engine: Engine) -> None:
    await engine.write(lambda tx: tx.put_registry("s", "a", b"1"))
    await engine.read(lambda c: None)
    assert engine.cached(("s", "a")) == (b"1", 1)
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from deia_recovery.engine.engine import Engine
        engine = Engine(Path({str(engine.folder)!r}))
        for i in range(20):
            engine.write(lambda tx: tx.put_registry("s", "a", b"from elsewhere")).result(10)
        engine.close()
        """
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], check=True)
    assert engine.cached(("s", "a")) is None  # memory knows that it does not know
    await engine.read(lambda c: None)
    assert engine.cached(("s", "a")) == (b"from elsewhere", 21)


async def test_two_processes_write_side_by_side_without_losing_a_write(engine: Engine) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from deia_recovery.engine.engine import Engine
        engine = Engine(Path({str(engine.folder)!r}))
        def add(tx):
            row = tx.one("SELECT value FROM registry WHERE store='s' AND key='n'")
            tx.put_registry("s", "n", str(int(row[0] if row else 0) + 1).encode())
        for i in range(100):
            engine.write(add).result(20)
        engine.close()
        """
    )
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    codes = [await asyncio.to_thread(child.wait) for child in children]
    assert codes == [0, 0]
    assert await asyncio.to_thread(value, engine, "n") == b"200"
    assert engine.peek() == 200


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_anew_and_leaves_the_parent_alone(engine: Engine) -> None:
    engine.write(lambda tx: tx.put_registry("s", "a", b"parent")).result(10)
    child = os.fork()
    if child == 0:
        try:
            engine.write(lambda tx: tx.put_registry("s", "b", b"child")).result(10)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    engine.write(lambda tx: tx.put_registry("s", "c", b"parent again")).result(10)
    assert value(engine, "b") == b"child"
    engine.close()
    assert verify_live(engine.database).ok


async def test_a_locked_database_is_a_typed_error_and_the_next_write_works(engine: Engine) -> None:
    engine.options = EngineOptions(busy=0.05, reserve=0)
    engine.connections._options = engine.options
    other = sqlite3.connect(engine.database, isolation_level=None)
    other.execute("PRAGMA wal_autocheckpoint=0")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateUnavailable, match="locked by another program"):
        await engine.write(lambda tx: tx.put_registry("s", "a", b"1"))
    other.execute("ROLLBACK")
    assert await engine.write(lambda tx: tx.put_registry("s", "a", b"1")) == 1
    other.close()


async def test_low_space_refuses_what_grows_and_lets_the_rest_finish(engine: Engine) -> None:
    await engine.write(lambda tx: tx.put_registry("s", "a", b"1"))
    engine.options = EngineOptions(reserve=1 << 60)
    await asyncio.to_thread(engine._look_at_space)
    with pytest.raises(StateUnavailable, match="free space") as caught:
        await engine.write(lambda tx: tx.put_registry("s", "b", b"3"))
    assert caught.value.status_code == 507
    assert await engine.write(lambda tx: tx.delete("registry", ("s", "a")), grows=False)


async def test_time_never_goes_back_from_commit_to_commit(engine: Engine, clock: object) -> None:
    first = await engine.write(lambda tx: (tx.put_registry("s", "a", b"1"), tx.now)[1])
    clock.jump(-86400)  # type: ignore[attr-defined]
    assert await engine.write(lambda tx: (tx.put_registry("s", "a", b"1"), tx.now)[1]) == first


def test_a_flip_anywhere_in_the_database_is_found(engine: Engine) -> None:
    for i in range(400):
        engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", os.urandom(100)))
    engine.write(lambda tx: None).result(10)
    engine.checkpoints.run(wait=True)
    engine.close()
    data = bytearray(engine.database.read_bytes())
    import random

    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    covered = read_wal(engine.database.with_name("state.db-wal")).pages
    engine.database.with_name("state.db-wal").unlink()
    assert verify_live(engine.database).ok, covered
    for _ in range(300):
        at, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
        data[at] ^= bit
        engine.database.write_bytes(data)
        assert not verify_live(engine.database).ok, f"seed {seed}: byte {at} bit {bit}"
        data[at] ^= bit


def test_a_flip_in_the_log_never_passes_for_a_torn_tail(engine: Engine) -> None:
    for i in range(60):
        engine.write(lambda tx, i=i: tx.put_registry("s", f"k{i}", os.urandom(100))).result(10)
    engine.close()
    path = engine.database.with_name("state.db-wal")
    data = bytearray(path.read_bytes())
    state = read_wal(path)
    assert not state.lost
    assert state.frames > 100
    end = 32 + (state.frames - 8) * (24 + state.page_size)
    import random

    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for _ in range(25):
        at, bit = dice.randrange(end), 1 << dice.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        assert not verify_live(engine.database).ok, f"seed {seed}: byte {at} bit {bit}"
        data[at] ^= bit


@pytest.mark.parametrize("work", ["checkpoint", "scrub"])
def test_a_long_checkpoint_or_scrub_keeps_open_what_it_works_on(
    engine: Engine, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The idle writer closes everything after a while; a descriptor closed under a checkpoint may be another file's."""
    engine.options = EngineOptions(reserve=0, idle=0.02)
    engine.write(lambda tx: tx.put_registry("s", "k", b"v" * 600)).result(10)
    sums: Any = engine.checkpoints._sums
    name = "fold" if work == "checkpoint" else "check"
    original, descriptors = getattr(sums, name), []

    def slowly(fd: int, *arguments: Any, **more: Any) -> Any:
        before = os.fstat(fd)
        time.sleep(0.3)  # the writer's thread ends after 20 ms without work
        descriptors.append((before.st_ino, os.fstat(fd).st_ino))
        return original(fd, *arguments, **more)

    monkeypatch.setattr(sums, name, slowly)
    if work == "checkpoint":
        assert engine.checkpoints.run(wait=True)
    else:
        assert engine.checkpoints.scrub(1, 1 << 20)[1] == []
    assert [before == after for before, after in descriptors] == [True]
    engine.close()
    assert verify_live(engine.database).ok


def test_a_checkpoint_that_readers_hold_back_knows_what_it_moved(engine: Engine) -> None:
    """Readers that stand anywhere in the log make a checkpoint move older images of a page than the newest."""
    dice = random.Random(7)
    readers: list[sqlite3.Connection] = []

    def write(count: int) -> None:
        for _ in range(count):
            key, value = f"k{dice.randrange(40)}", dice.randbytes(600)
            engine.write(lambda tx, key=key, value=value: tx.put_registry("s", key, value)).result(10)

    write(30)
    for turn in range(40):
        write(dice.randrange(1, 12))
        if len(readers) < 3:
            reader = connect(engine.database, reading=True)
            reader.execute("BEGIN")
            reader.execute("SELECT 1 FROM meta").fetchone()
            readers.append(reader)
        write(dice.randrange(1, 12))
        assert engine.checkpoints.run(wait=True)
        assert engine.checkpoints.scrub(1, 1 << 20)[1] == [], f"turn {turn}"
        if dice.random() < 0.4:
            engine.connections.close_one(readers.pop(dice.randrange(len(readers))))
    for reader in readers:
        engine.connections.close_one(reader)
    assert engine.checkpoints.run(wait=True)
    assert engine.checkpoints.problems == []
    engine.close()
    assert verify_live(engine.database).ok
