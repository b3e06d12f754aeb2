"""A SQLite store that is damaged, deleted, out of room, or somebody else's."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.store import HomePage, SharedStore, StoreError, StoreSettings, StoreUnavailable
from deia_hardening.store.sqlite import SqliteStore


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
