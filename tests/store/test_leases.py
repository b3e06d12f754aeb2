"""A lease has one holder at a time, whatever is killed, stopped, slow, or set back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

from deia_hardening.store import HomePage, SharedStore, StoreSettings
from deia_hardening.store.sqlite import SqliteStore
from deia_hardening.store.transaction import lease_is_live


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_lease_whose_holder_was_killed_is_free_after_its_time(sqlite: SqliteStore, clock: Any) -> None:
    dead = sqlite.lease_take("backup", 30, "dead")
    assert dead is not None and sqlite.lease_take("backup", 30, "next") is None
    clock.now += 29.9
    assert sqlite.lease_take("backup", 30, "next") is None
    clock.now += 0.2
    grant = sqlite.lease_take("backup", 30, "next")
    assert grant is not None and grant.token > dead.token
    assert sqlite.lease_renew(dead, 30) is False


def test_a_lease_of_another_boot_does_not_count() -> None:
    assert lease_is_live(130, 30, "b", now=101, now_boot="b")
    assert not lease_is_live(130, 30, "b", now=131, now_boot="b")
    assert not lease_is_live(130, 30, "b", now=101, now_boot="c")
    assert not lease_is_live(99_130, 30, "", now=101, now_boot="")


async def test_a_holder_whose_store_is_away_stops_believing_in_time(
    sqlite: SqliteStore, blocking: Any, clock: Any
) -> None:
    store = SharedStore(sqlite, HomePage(sqlite.path.parent / "page"), StoreSettings(), blocking, clock)
    async with store.lease("a", 30) as lease:
        assert not lease.lost
        clock.now += 31
        assert lease.lost
        await lease.wait_lost()


def test_a_lease_is_not_taken_from_whoever_took_it_while_another_waited_for_the_file(
    sqlite: SqliteStore, clock: Any
) -> None:
    sqlite.start()
    other = SqliteStore(sqlite.path, clock=clock)
    found: list[Any] = []
    late = threading.Thread(target=lambda: found.append(sqlite.lease_take("backup", 30, "late")))
    with sqlite._write_lock:  # as a busy file, or SIGSTOP, holds it up
        late.start()
        deadline = time.monotonic() + 20
        while not sqlite._queue and time.monotonic() < deadline:
            time.sleep(0.001)
        clock.now += 0.001
        first = other.lease_take("backup", 30, "first")
    late.join(20)
    other.close()
    assert first is not None
    assert found == [None]
    assert other.lease_renew(first, 30)
    other.close()


def test_of_processes_that_ask_at_once_one_gets_the_lease(sqlite: SqliteStore) -> None:
    sqlite.start()
    program = """
        import json, sys, time
        from pathlib import Path
        from deia_hardening.store.sqlite import SqliteStore
        store = SqliteStore(Path(sys.argv[1]))
        store.start()
        begin = float(sys.argv[2])
        got = []
        for number in range(40):
            while time.time() < begin + number * 0.02:
                pass
            if store.lease_take(f"lease-{number}", 60, sys.argv[3]) is not None:
                got.append(number)
        print(json.dumps(got))
    """
    begin = str(time.time() + 1)
    children = [run(program, sqlite.path, begin, str(number)) for number in range(3)]
    granted: list[int] = []
    for child in children:
        out, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
        granted += json.loads(out)
    assert sorted(granted) == list(range(40))


def test_a_stopped_holder_knows_that_it_lost_the_lease_as_soon_as_it_runs_again(sqlite: SqliteStore) -> None:
    program = """
        import sys
        from pathlib import Path
        from deia_hardening.store.sqlite import SqliteStore
        store = SqliteStore(Path(sys.argv[1]))
        with store.lease("backup", 0.6) as lease:
            print(lease.token, flush=True)
            sys.stdin.readline()
            print(lease.lost, flush=True)
    """
    child = run(program, sqlite.path)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        token = int(child.stdout.readline())
        child.send_signal(signal.SIGSTOP)
        other = SqliteStore(sqlite.path)
        with other.lease("backup", 30, wait=30) as lease:
            assert lease.token > token
            child.send_signal(signal.SIGCONT)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "True\n"
            assert child.wait(20) == 0  # which gives back what it held: nothing any more
            assert not lease.lost
            assert other.lease_take("backup", 30, "third") is None
        other.close()
    finally:
        child.kill()
        child.communicate()


class Jumping:
    """A clock whose wall time somebody sets."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.offset = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)

    def wall(self) -> float:
        return float(self.clock.wall() + self.offset)


def test_a_wall_clock_that_is_set_moves_no_lease(tmp_path: Path, clock: Any) -> None:
    jumping = Jumping(clock)
    store = SqliteStore(tmp_path / "store.db", clock=jumping)
    held = store.lease_take("backup", 30, "one")
    assert held is not None
    for offset in (1e9, -1e9):
        jumping.offset = offset
        assert store.lease_take("backup", 30, "two") is None
        assert store.lease_renew(held, 30)
    clock.now += 31
    following = store.lease_take("backup", 30, "two")
    store.close()
    assert following is not None
    assert following.token > held.token
