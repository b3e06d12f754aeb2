"""Kills, power cuts and failed system calls: nothing acknowledged is lost, nothing is half there, nothing is silent.

The short slices run always, seeded and printed; the campaigns of thousands are slow (DEIA_CAMPAIGN: how many).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from deia_hardening.testing import faults
from deia_recovery.engine import files
from deia_recovery.engine.connections import apart
from deia_recovery.engine.engine import Engine, decode_ops
from deia_recovery.engine.generation import create_first, read_current
from deia_recovery.engine.jobs import Entry
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.pages import verify_live
from deia_recovery.engine.pending import Pending
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateUnavailable

pytestmark = pytest.mark.fault

OPTIONS = EngineOptions(reserve=0, log_limit=48 << 10, log_reserve=32 << 10, idle=0.05)

CALLS = (
    "openat", "write", "pwrite64", "pread64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "mkdir", "flock",
    "fcntl", "newfstatat",
)  # fmt: skip

CAMPAIGN = int(os.environ.get("DEIA_CAMPAIGN", "10000"))


def step(tx: Tx) -> int:
    """One write that would show any loss, half or double: a counter, a log entry, and a pair that must agree."""
    row = tx.one("SELECT value FROM registry WHERE store = 's' AND key = 'n'")
    number = int(row[0] if row else b"0") + 1
    text = b"%d" % number
    tx.put_registry("s", "n", text)
    tx.put_registry("s", f"entry-{number:08d}", text * 20)
    tx.put_registry("s", "left", text)
    tx.put_registry("s", "right", text)
    return number


def plain(engine: Engine, key: str) -> Entry:
    """A plain row, which takes the quickest way to the disk."""
    return engine.enter(Entry("s", key, key.encode() * 9, None, None))


def work(folder: Path, count: int, together: int, turn: int) -> Callable[[Callable[[str], None]], None]:
    """Every second one in a thread, which commits itself; every third one in small groups, begun ahead of time."""

    def run(acknowledge: Callable[[str], None]) -> None:
        engine = Engine(folder, attrs.evolve(OPTIONS, group=512 if turn % 3 else 2))
        waiting: list[Pending[int]] = []
        for number in range(count):
            waiting.append(engine.write(step))
            if len(waiting) >= together:
                acknowledge(str(max(one.result(30) for one in waiting)))
                waiting.clear()
                rows = [plain(engine, f"plain-{turn}-{number}-{i}") for i in range(together)]
                for row in rows:
                    row.result(30)
                acknowledge(f"plain-{turn}-{number}-{together - 1}")
        engine.close()

    def run_apart(acknowledge: Callable[[str], None]) -> None:
        thread = threading.Thread(target=run, args=(acknowledge,))
        thread.start()
        thread.join()

    return run_apart if turn % 2 else run


def check(database: Path, acknowledged: int, where: str, rows_acknowledged: Iterable[str] = ()) -> int:
    """The state verifies, holds everything acknowledged, whole and once. Returns how far it goes."""
    verdict = verify_live(database)
    assert verdict.ok, f"{where}: a good state does not verify: {verdict.problems}"
    with apart(database) as connection:
        rows = dict(connection.execute("SELECT key, value FROM registry"))
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", where
        log = [(end, len(decode_ops(ops))) for end, ops in connection.execute("SELECT position, ops FROM changes")]
    assert all(end - count == before for (before, _), (end, count) in pairwise(log)), f"{where}: the log has a gap"
    missing = [key for key in rows_acknowledged if key not in rows]
    assert not missing, f"{where}: acknowledged and lost: {missing}"
    assert all(rows[key] == key.encode() * 9 for key in rows if key.startswith("plain-")), where
    number = int(rows.get("n", b"0"))
    assert number >= acknowledged, f"{where}: {acknowledged} was acknowledged, the state ends at {number}"
    entries = sorted(key for key in rows if key.startswith("entry-"))
    assert entries == [f"entry-{i:08d}" for i in range(1, number + 1)], where
    assert all(rows[key] == b"%d" % int(key[6:]) * 20 for key in entries), where
    assert rows.get("left") == rows.get("right") == rows.get("n"), where
    return number


def kills(folder: Path, rounds: int) -> None:
    seed = faults.seed()
    generation = create_first(folder)
    killed = number = 0
    for turn in range(rounds):
        together = 1 + (seed + turn) % 5
        run = faults.fork_and_kill(
            work(generation.folder, 400, together, turn), seed=seed + turn, after=(0, 60), jitter=0.004
        )
        killed += run.killed
        acknowledged = max([int(line) for line in run.acknowledged if line.isdigit()], default=0)
        rows = [line for line in run.acknowledged if not line.isdigit()]
        where = f"seed {seed} round {turn}: {run.stderr}"
        number = check(generation.folder / "state.db", max(acknowledged, number), where, rows)
        if number > 3000:
            shutil.rmtree(folder)
            generation, number = create_first(folder), 0
    assert killed > rounds / 2


@pytest.mark.blocking
def test_killed_at_any_instant_it_keeps_what_it_acknowledged(root: Path) -> None:
    kills(root, 40)


@pytest.mark.slow
@pytest.mark.blocking
def test_ten_thousand_kills(root: Path) -> None:
    kills(root, CAMPAIGN)


def live(root: Path, turns: int, acknowledge: Callable[[str], None]) -> None:
    """A state's life with every kind of commit and checkpoint; tells what was acknowledged and what was refused."""
    generation = read_current(root) or create_first(root)
    engine = Engine(generation.folder, attrs.evolve(OPTIONS, group=2, busy=0.5))
    acknowledge("0")
    rows = []
    for turn in range(turns):
        try:
            number = max(one.result(30) for one in [engine.write(step) for _ in range(1 + turn % 3)])
            rows = [plain(engine, f"plain-{turn}-{i}") for i in range(1 + turn % 5)]
        except Exception as error:
            acknowledge(f"refused {type(error).__name__}")
            rows = []
        else:
            acknowledge(str(number))
        for row in rows:
            try:
                row.result(30)
            except Exception as error:
                acknowledge(f"refused {type(error).__name__}")
            else:
                acknowledge(row.key)
        if turn % 10 == 9:
            try:
                engine.checkpoints.run(wait=True)
            except Exception as error:
                acknowledge(f"no checkpoint {type(error).__name__}")
    engine.close()


CHILD = """
import functools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_faults import live
live(Path(sys.argv[1]), int(sys.argv[3]), functools.partial(print, flush=True))
"""


def cuts(tmp_path: Path, count: int, turns: int) -> None:
    faults.need("strace")
    seed = faults.seed()
    folder = tmp_path / "recorded"
    folder.mkdir()
    argv = [sys.executable, "-c", CHILD, str(folder / "state"), str(Path(__file__).parent), str(turns)]
    trace = faults.record_child(argv, folder)
    seen = 0
    for cut in faults.power_cuts(trace, count=count, seed=seed):
        target = tmp_path / "cut"
        shutil.rmtree(target, ignore_errors=True)
        cut.restore(target)
        numbers = [int(mark) for mark in cut.marks if str(mark).isdigit()]
        database = target / "state" / "g000001" / "state.db"
        if not numbers:
            continue  # the state was not begun, as far as anybody was told
        seen += 1
        rows = [str(mark) for mark in cut.marks if str(mark).startswith("plain-")]
        check(database, max(numbers), cut.describe(), rows)
    assert seen > count / 3


@pytest.mark.blocking
def test_a_power_cut_at_any_instant_loses_nothing_acknowledged(tmp_path: Path) -> None:
    cuts(tmp_path, 60, 40)


@pytest.mark.slow
@pytest.mark.blocking
def test_ten_thousand_power_cuts(tmp_path: Path) -> None:
    cuts(tmp_path, CAMPAIGN, 120)


def failures(tmp_path: Path, calls: tuple[str, ...], limit: int) -> None:
    faults.need("strace")

    def work(acknowledge: Callable[[str], None]) -> None:
        root = tmp_path / str(time.time_ns())
        acknowledge(f"root {root}")
        live(root / "state", 12, acknowledge)

    def apart(acknowledge: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(work, acknowledge).result()

    tried = refused = 0
    for program in (work, apart):  # the writer's thread commits, or the waiting one
        found = faults.each_failure(
            program, calls=calls, errors=("EIO", "ENOSPC", "EINTR"), below=tmp_path, limit=limit
        )
        for failure in found:
            tried += 1
            refused += judged(failure)
    assert tried
    assert refused


@pytest.mark.blocking
@pytest.mark.parametrize("name", ["state.db-shm", "position"])
def test_memory_that_is_not_mapped_is_never_silent(tmp_path: Path, name: str) -> None:
    """SQLite's shared index, and the page with the newest position."""
    faults.need("strace")
    root = tmp_path / "root"

    def work(acknowledge: Callable[[str], None]) -> None:
        shutil.rmtree(root, ignore_errors=True)
        acknowledge(f"root {root}")
        live(root / "state", 12, acknowledge)

    found = faults.each_failure(
        work, calls=("mmap",), errors=("ENOMEM", "EAGAIN"), files=[root / "state" / "g000001" / name]
    )
    refused = [judged(failure) for failure in found]
    assert refused
    assert any(refused) or name == "position"


def judged(failure: faults.Failure) -> bool:
    """Whether anything was refused; what was acknowledged is there, and who acknowledged nothing said why."""
    where = f"{failure.call} {failure.error} {failure.nth}: {failure.stdout[-300:]} {failure.stderr[-600:]}"
    lines = failure.stdout.split("\n")
    numbers = [int(line) for line in lines if line.isdigit()]
    if numbers:
        rows = [line for line in lines if line.startswith("plain-")]
        root = Path(lines[0].removeprefix("root "))
        check(root / "state" / "g000001" / "state.db", max(numbers), where, rows)
        shutil.rmtree(root)
    else:
        assert failure.returncode != 0, f"{where}: nothing was acknowledged and nothing was said"
    return any(line.startswith(("refused", "no checkpoint")) for line in lines)


@pytest.mark.blocking
def test_a_failed_system_call_is_never_silent(tmp_path: Path) -> None:
    failures(tmp_path, ("fdatasync", "ftruncate"), 2)


@pytest.mark.slow
@pytest.mark.blocking
@pytest.mark.parametrize("call", CALLS)
def test_every_failed_system_call_is_never_silent(tmp_path: Path, call: str) -> None:
    failures(tmp_path, (call,), 1000)


@pytest.mark.blocking
def test_planted_mistakes_are_caught(root: Path) -> None:
    """The checks above are worth something: a lost, a doubled and a half write are all seen."""
    generation = create_first(root)
    engine = Engine(generation.folder, OPTIONS)
    for _ in range(5):
        engine.write(step).result(10)
    engine.close()
    database = generation.folder / "state.db"
    assert check(database, 5, "good") == 5
    with pytest.raises(AssertionError, match="acknowledged"):
        check(database, 6, "lost")
    for sql in (
        "UPDATE registry SET value = '4' WHERE key = 'left'",
        "DELETE FROM registry WHERE key = 'entry-00000003'",
        "INSERT INTO registry VALUES('s', 'entry-00000009', '9', 9, 9)",
    ):
        with apart(database) as connection:
            connection.execute("PRAGMA query_only=OFF")
            connection.execute("SAVEPOINT planted")
            connection.execute(sql)
            rows = dict(connection.execute("SELECT key, value FROM registry"))
            connection.execute("ROLLBACK TO planted")
            connection.execute("RELEASE planted")
        number = int(rows["n"])
        good = sorted(k for k in rows if k.startswith("entry-")) == [f"entry-{i:08d}" for i in range(1, number + 1)]
        assert not (good and rows["left"] == rows["right"] == rows["n"])
    assert isinstance(sqlite3.sqlite_version, str)


@pytest.mark.blocking
def test_a_full_disk_refuses_reads_on_and_heals(tmp_path: Path) -> None:
    faults.need("tmpfs")
    with faults.small_disk(mib=6) as folder:
        generation = create_first(folder / "state")
        engine = Engine(generation.folder, EngineOptions(reserve=0, log_reserve=0, log_limit=1 << 30))
        engine.write(step).result(10)
        faults.fill(folder)
        with pytest.raises(StateUnavailable) as caught:
            for _ in range(3000):
                engine.write(step).result(10)
        assert "full" in str(caught.value)
        before = engine.read_here(lambda c: c.execute("SELECT count(*) FROM registry").fetchone()[0])
        assert before >= 4
        faults.release(folder)
        number = engine.write(step).result(10)
        engine.close()
        assert check(generation.folder / "state.db", number, "after the disk had room again") == number


def test_a_lock_that_can_not_be_given_back_is_free_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """Else every writer of the machine would wait for the one that could not say that it is done."""
    mine, other = files.FileLock(tmp_path / "lock"), files.FileLock(tmp_path / "lock")

    def flock(fd: int, how: int) -> None:
        if how == fcntl.LOCK_UN:
            raise OSError(errno.EIO, "no")
        fcntl.flock(fd, how)

    mine.acquire()
    assert not other.try_acquire()
    with monkeypatch.context() as patch:
        patch.setattr(files, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": flock}))
        mine.release()
    assert other.try_acquire()
    other.close()
    assert mine.try_acquire()
    mine.close()


def test_a_database_that_got_no_log_is_never_put_in_force(root: Path, monkeypatch: Any) -> None:
    """SQLite only says so when the write fails that is to turn the log on: without it no digest would be right."""

    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return super().execute("SELECT 'delete'" if sql == "PRAGMA journal_mode=WAL" else sql, *parameters)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Stubborn))
        with pytest.raises(StateUnavailable, match="write-ahead log"):
            create_first(root)
    assert read_current(root) is None
    assert verify_live(create_first(root).folder / "state.db").ok
