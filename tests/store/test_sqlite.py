"""What SQLite must stand: kills, forks, damage, a full descriptor table, two processes, an idle hour."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.errors import SettingsError
from deia_hardening.store import (
    HomePage,
    SharedStore,
    StoreError,
    StoreSettings,
    StoreUnavailable,
    Write,
    filesystem,
    open_store,
    sqlite_file,
)
from deia_hardening.store.filesystem import file_system_of
from deia_hardening.store.sqlite import SqliteStore
from deia_hardening.store.transaction import Transaction


def run(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    head = "import os, sys\nfrom pathlib import Path\nfrom deia_hardening.store.sqlite import SqliteStore\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_construction_opens_nothing(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "state" / "store.db", HomePage(tmp_path / "state" / "page"))
    assert not (tmp_path / "state").exists()


def test_the_file_is_private_synced_fully_and_not_checkpointed_by_sqlite(sqlite: SqliteStore) -> None:
    sqlite.put("k", b"v")
    for name in ("store.db", "store.db-wal", "store.db-shm", "store.db.lock", "page"):
        assert (sqlite.path.parent / name).stat().st_mode & 0o777 == 0o600, name
    assert sqlite._writer is not None
    pragma = sqlite._writer.connection.execute
    assert pragma("PRAGMA synchronous").fetchone() == (2,)
    assert pragma("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_idle_store_holds_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    before = len(os.listdir("/proc/self/fd"))
    store = SqliteStore(tmp_path / "store.db", HomePage(tmp_path / "page"), StoreSettings(idle_close=0.05))
    store.put("k", b"v")
    deadline = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before or any(t.name == "deia-store-idle" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.get("k") is not None


def test_the_log_is_folded_in_at_its_size(sqlite: SqliteStore) -> None:
    sqlite._settings = StoreSettings(checkpoint_size=65536)
    for number in range(60):
        sqlite.put(f"k/{number}", bytes(8000))
    assert Path(f"{sqlite.path}-wal").stat().st_size <= 65536 + 40_000
    assert len(sqlite.list("k/")) == 60
    assert "checkpoint" not in sqlite._notes


def test_health_names_an_old_sqlite(sqlite: SqliteStore) -> None:
    sqlite.start()
    assert any("3.51.3" in note for note in sqlite.health()) is (sqlite3.sqlite_version_info < (3, 51, 3))


def test_a_network_file_system_is_refused_unless_allowed(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "network_file_system", lambda folder: "nfs4")
    with pytest.raises(StoreError, match="nfs4"):
        sqlite.put("k", b"v")
    sqlite._settings = StoreSettings(network_filesystem="allow")
    assert sqlite.put("k", b"v")


def test_the_file_system_is_read_from_mountinfo() -> None:
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "35 22 0:31 / /mnt/share\\040x rw shared:7 - nfs4 host:/x rw,vers=4.2\n"
        "36 22 0:32 / /mnt/y rw - fuse.sshfs host:/x rw\nbroken line\n"
    )
    assert file_system_of(text, "254:0") == "ext4"
    assert file_system_of(text, "0:31") in filesystem.NETWORK
    assert file_system_of(text, "0:32") in filesystem.NETWORK
    assert file_system_of(text, "9:9") == ""


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:", "sqlite:///", "redis://user:pw@h"])
def test_an_unknown_url_is_a_settings_error_that_shows_no_secret(tmp_path: Path, url: str, blocking: Any) -> None:
    with pytest.raises(SettingsError) as refused:
        open_store(StoreSettings(url=url), tmp_path, blocking=blocking)
    assert "pw" not in str(refused.value)
    assert url not in repr(StoreSettings(url=url))


def test_a_lock_held_too_long_is_an_error_and_not_a_hang(sqlite: SqliteStore) -> None:
    import fcntl

    sqlite.put("k", b"1")
    assert sqlite.get("k") is not None
    sqlite._settings = StoreSettings(busy_timeout=0.05)
    with open(f"{sqlite.path}.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="nothing was written"):
            sqlite.put("k", b"2")
        entry = sqlite.get("k")
        assert entry is not None and entry.value == b"1"
    sqlite.put("k", b"3")


def test_who_writes_without_a_pause_lets_others_have_the_lock(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask for it every 2 ms at the most: a lock that is given back and taken at once is never theirs."""
    sqlite.start()
    opened = sqlite._writer
    assert opened is not None
    now, slept = [time.monotonic() + 100], []

    def sleep(seconds: float) -> None:
        slept.append(now[0])
        assert seconds > sqlite_file._LONGEST_PAUSE
        now[0] += seconds

    monkeypatch.setattr(sqlite_file, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    for _ in range(500):
        with opened.locked(1.0):
            now[0] += 0.001
    pauses = [after - before for before, after in itertools.pairwise(slept)]
    assert len(pauses) >= 5 and max(pauses) < 0.07
    slept.clear()
    for _ in range(100):
        with opened.locked(1.0):
            now[0] += 0.001
        now[0] += 0.003  # as one that has other work between: the lock was free for long enough
    assert not slept


def test_processes_share_the_store_without_losing_a_write(sqlite: SqliteStore) -> None:
    program = """
        store = SqliteStore(Path(sys.argv[1]))
        for number in range(40):
            store.put(f"{sys.argv[2]}/{number}", b"x")
        store.close()
    """
    children = [run(program, sqlite.path, name) for name in "abc"]
    for child in children:
        _, error = child.communicate(timeout=60)
        assert child.returncode == 0, error
    assert len(sqlite.list("")) == 120
    revisions = sorted(entry.revision for _, entry in sqlite.list(""))
    assert revisions == list(range(revisions[0], revisions[0] + 120))


@pytest.mark.fault
def test_no_acknowledged_write_is_lost_by_kill(sqlite: SqliteStore) -> None:
    program = """
        from deia_hardening.store import HomePage, StoreSettings
        path = Path(sys.argv[1])
        store = SqliteStore(path, HomePage(path.parent / "page"), StoreSettings(checkpoint_size=65536))
        number = int(sys.argv[2])
        while True:
            store.put("n", str(number).encode() + bytes(3000))
            store.put("page/n", str(number).encode())
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
            number += 1
    """
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    number = 0
    for _ in range(6):
        child = run(program, sqlite.path, number)
        assert child.stdout is not None and child.stderr is not None
        for _ in range(chance.randrange(1, 60)):
            line = child.stdout.readline()
            assert line, child.stderr.read()
            number = int(line)
        time.sleep(chance.random() * 0.003)  # at a random instant: the seed and the machine decide
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        number = int(rest[-1]) if rest and rest[-1].isdigit() else number
        child.stderr.close()
        child.stdout.close()
        child.wait()
        entry = sqlite.get("n")
        assert entry is not None and int(entry.value.rstrip(b"\0")) in (number, number + 1)
        sqlite.close()
        fresh = SqliteStore(sqlite.path, HomePage(sqlite.path.parent / "page"))
        fresh.start()
        assert fresh._page is not None and fresh._page.state().get("n") in (number, number + 1)
        fresh.close()
        number += 2
    assert not list(sqlite.path.parent.glob("*.damaged*"))


def test_a_fork_takes_no_connection_along_and_both_sides_go_on(tmp_path: Path) -> None:
    program = """
        import threading, time
        store = SqliteStore(Path(sys.argv[1]))
        store.put("a", b"1")
        assert store.get("a")
        stop = []
        def busy():
            while not stop:
                store.put("busy", b"x")
        thread = threading.Thread(target=busy)
        thread.start()
        children = []
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                fine = store._writer is None and store._reader is None
                for turn in range(5):
                    store.put(f"child/{number}/{turn}", b"x")
                os._exit(0 if fine else 1)
            children.append(pid)
            store.put(f"parent/{number}", b"x")
        codes = [os.waitpid(pid, 0)[1] for pid in children]
        stop.append(1)
        thread.join()
        print(codes, len(store.list("child/")), len(store.list("parent/")))
        store.close()
    """
    child = run(program, tmp_path / "store.db")
    out, error = child.communicate(timeout=120)
    assert out.strip() == "[0, 0, 0, 0, 0] 25 5", error


@pytest.mark.blocking
async def test_the_page_follows_what_a_dead_worker_had_not_shown(
    sqlite: SqliteStore, blocking: Any, clock: Any
) -> None:

    store = SharedStore(sqlite, sqlite._page, StoreSettings(), blocking, clock)
    await store.start()
    silent = SqliteStore(sqlite.path, None, clock=clock)  # commits, and never reaches the page
    silent.put("page/mode", b'"DEGRADED"')
    silent.close()
    assert store.page.state().get("mode") is None
    keeping = asyncio.create_task(store.keep())
    while store.page.state().get("mode") != "DEGRADED":
        clock.now += 1
        await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.wait([keeping])


def test_commits_are_shared_by_waiting_writers(sqlite: SqliteStore) -> None:
    sqlite.start()
    assert sqlite._writer is not None
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    sqlite._writer.connection.set_trace_callback(count)
    ready = threading.Barrier(17)

    def write(number: int) -> None:
        ready.wait()
        sqlite.put(f"k/{number}", b"x")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    sqlite._write_lock.acquire()
    ready.wait()
    while len(sqlite._queue) < 16:
        time.sleep(0.001)
    sqlite._write_lock.release()
    for thread in threads:
        thread.join()
    assert len(sqlite.list("k/")) == 16
    assert commits == 1


@pytest.mark.parametrize("mistake", [TypeError("a bug"), KeyError("another"), sqlite3.IntegrityError("a third")])
def test_one_callers_mistake_fails_no_other_of_the_same_commit(sqlite: SqliteStore, mistake: Exception) -> None:
    sqlite.start()

    def wrong(transaction: Transaction) -> None:
        transaction.apply([Write("half", b"done")])
        raise mistake

    with ThreadPoolExecutor(9) as threads:
        with sqlite._write_lock:  # all wait for it, and are in one commit
            good = [threads.submit(sqlite.put, f"k{number}", b"v") for number in range(4)]
            bad = threads.submit(sqlite._commit, wrong)
            good += [threads.submit(sqlite.put, f"k{number}", b"v") for number in range(4, 8)]
            while len(sqlite._queue) < 9:
                threading.Event().wait(0.001)
        assert all(one.result(30) for one in good)
        with pytest.raises(type(mistake)):
            bad.result(30)
    assert [key for key, _ in sqlite.list("")] == [f"k{number}" for number in range(8)]
