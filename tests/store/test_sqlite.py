"""What SQLite must stand: kills, forks, damage, a full descriptor table, two processes, an idle hour."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
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
    filesystem,
    open_store,
    sqlite_file,
)
from deia_hardening.store.filesystem import file_system_of
from deia_hardening.store.sqlite import SqliteStore


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


# ---- damage


def damage_head(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.blocking
@pytest.mark.parametrize("damage", [damage_head, damage_middle, damage_empty])
async def test_a_damaged_store_is_set_aside_and_begun_anew(
    sqlite: SqliteStore, damage: Any, blocking: Any, clock: Any
) -> None:
    for number in range(50):
        last = sqlite.put(f"tokens/{number}", bytes(500))
    token = sqlite.lease_take("backup", 1000, "x")
    assert token is not None
    sqlite.close()
    damage(sqlite.path)
    clock.now -= 3600  # a clock that was set back must not make tokens repeat
    fresh = SqliteStore(sqlite.path, sqlite._page, clock=clock)
    store = SharedStore(fresh, sqlite._page, StoreSettings(), blocking, clock)
    told = []

    async def callback(rebuilt: Any) -> None:
        told.append(rebuilt)
        await store.put("rollout/x", b"from the journal", if_revision=0)

    store.on_rebuilt(callback)
    await store.start()
    await store.start()
    assert len(told) == 1 and Path(told[0].set_aside).exists() and told[0].why
    assert await store.list("tokens/") == []
    assert any("set aside" in note or "kept as" in note for note in store.health())
    again = fresh.lease_take("backup", 1000, "y")
    assert again is not None and again.token > max(token.token, last)
    # Another process, later, is told too.
    other = SharedStore(SqliteStore(sqlite.path), HomePage(sqlite.path.parent / "page"), StoreSettings(), blocking)
    other.on_rebuilt(lambda rebuilt: _append(told, rebuilt))
    await other.start()
    assert len(told) == 2 and told[0] == told[1]


async def _append(told: list[Any], rebuilt: Any) -> None:
    told.append(rebuilt)


@pytest.mark.parametrize("folded", [False, True], ids=["with its log left", "folded"])
def test_a_file_that_was_deleted_counts_as_damaged(sqlite: SqliteStore, clock: Any, folded: bool) -> None:
    for number in range(20):
        last = sqlite.put(f"tokens/{number}", bytes(3000))
    token = sqlite.lease_take("backup", 1000, "x")
    assert token is not None
    log = Path(f"{sqlite.path}-wal").read_bytes()
    sqlite.close()
    sqlite.path.unlink()
    if not folded:  # its process was killed: SQLite would read the log into the new file
        Path(f"{sqlite.path}-wal").write_bytes(log)
    clock.now -= 7200
    fresh = SqliteStore(sqlite.path, HomePage(sqlite.path.parent / "page"), clock=clock)
    assert fresh.list("") == []
    rebuilt = fresh.rebuilt()
    assert rebuilt is not None
    assert rebuilt.why == "the file was gone"
    assert bool(rebuilt.set_aside) is not folded
    again = fresh.lease_take("backup", 1000, "y")
    assert again is not None
    assert again.token > max(token.token, last)
    other = SqliteStore(sqlite.path, clock=clock)  # another worker's health tells it too
    other.start()
    assert any("begun anew" in note for note in other.health())
    clock.now += 90_000
    fresh.close()
    fresh.start()
    assert not any("begun anew" in note for note in fresh.health())
    other.close()
    fresh.close()


@pytest.mark.blocking
async def test_a_store_lost_while_serving_is_told_and_its_fields_leave_the_page(
    sqlite: SqliteStore, blocking: Any, clock: Any
) -> None:
    page = HomePage(sqlite.path.parent / "page")
    settings = StoreSettings(recheck_interval=0.01, watch_interval=0.001)
    store = SharedStore(SqliteStore(sqlite.path, page, settings, clock), page, settings, blocking)
    sqlite.put("page/pin", b'"MAINTENANCE"')
    sqlite.close()
    told: list[str] = []

    async def callback(rebuilt: Any) -> None:
        told.append(rebuilt.why)

    store.on_rebuilt(callback)
    store.on_rebuilt(callback)  # as when a plugin is turned off and on
    await store.start()
    assert page.state().get("pin") == "MAINTENANCE"
    keeping = asyncio.create_task(store.keep())
    try:
        await asyncio.sleep(0.01)
        sqlite.path.unlink()
        for _ in range(3000):  # nobody but `keep` looks
            if told and page.state().get("pin") is None:
                break
            await asyncio.sleep(0.005)
        assert (told, page.state().get("pin")) == (["the file was gone"], None)
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await store.stop()


def test_damage_while_serving_is_noticed_and_healed_at_the_next_use(sqlite: SqliteStore) -> None:
    for number in range(50):
        sqlite.put(f"k/{number}", bytes(500))
    sqlite.close()
    content = bytearray(sqlite.path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)  # the head and the schema stay readable
    sqlite.path.write_bytes(content)
    for _ in range(3):
        try:
            sqlite.list("k/")
            sqlite.put("k/x", b"1")
        except StoreError:
            continue
        break
    assert sqlite.get("k/x") is not None
    assert list(sqlite.path.parent.glob("store.db.damaged-*"))


def test_a_worker_with_the_old_file_open_moves_to_the_new_one(sqlite: SqliteStore, clock: Any) -> None:
    sqlite.put("k", b"old")
    assert sqlite.get("k") is not None
    for suffix in ("", "-wal", "-shm"):
        Path(f"{sqlite.path}{suffix}").rename(f"{sqlite.path}.away{suffix}")
    other = SqliteStore(sqlite.path, clock=clock)
    other.put("k", b"new")
    entry = sqlite.get("k")
    assert entry is not None and entry.value == b"new"
    sqlite.put("l", b"1")
    assert other.get("l") is not None
    other.close()


@pytest.mark.fault
def test_after_a_failed_sync_all_goes_on_in_a_file_written_anew(sqlite: SqliteStore) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace to make fdatasync fail")
    sqlite.put("k", b"acknowledged")
    lease = sqlite.lease_take("backup", 1000, "x")
    sqlite.close()
    program = """
        store = SqliteStore(Path(sys.argv[1]))
        store.get("k")
        try:
            store.put("k", b"never acknowledged")
        except Exception as error:
            print(type(error).__name__, flush=True)
        print(store.put("k", b"after"))
        store.close()
    """
    head = "import os, sys\nfrom pathlib import Path\nfrom deia_hardening.store.sqlite import SqliteStore\n"
    inode = sqlite.path.stat().st_ino
    done = subprocess.run(
        [strace, "-f", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1", "-o", "/dev/null",
         sys.executable, "-c", head + textwrap.dedent(program), str(sqlite.path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.stdout.splitlines()[0] == "StoreUnavailable", done.stderr
    entry = sqlite.get("k")
    assert entry is not None and entry.value == b"after"
    assert sqlite.path.stat().st_ino != inode
    assert list(sqlite.path.parent.glob("store.db.failed-sync-*"))
    assert lease is not None and sqlite.lease_renew(lease, 1000)


def test_a_full_disk_is_an_error_and_heals(sqlite: SqliteStore) -> None:
    sqlite.put("k", b"1")
    assert sqlite._writer is not None
    execute = sqlite._writer.connection.execute
    (pages,) = execute("PRAGMA page_count").fetchone()
    execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreUnavailable, match="full"):
        for number in range(100):
            sqlite.put(f"k/{number}", bytes(10_000))
    assert sqlite.get("k") is not None
    sqlite.close()
    assert sqlite.put("k", b"2") > 0


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    content = (tmp_path / "store.db").read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(tmp_path / "store.db").put("k", b"v")
    assert (tmp_path / "store.db").read_bytes() == content


def test_a_newer_format_is_left_alone(sqlite: SqliteStore) -> None:
    sqlite.put("k", b"v")
    assert sqlite._writer is not None
    sqlite._writer.connection.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    sqlite.close()
    with pytest.raises(StoreError, match="format 99"):
        sqlite.get("k")
    assert not list(sqlite.path.parent.glob("*.damaged*"))


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


# ---- processes


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
    import asyncio

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
