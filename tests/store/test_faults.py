"""Power cuts, failed system calls, a full disk: what was acknowledged is there, and nothing is called damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deia_hardening.store import HomePage
from deia_hardening.store.sqlite import SqliteStore
from deia_hardening.testing import faults

CHILD = """
import os, sys
from pathlib import Path
from deia_hardening.store import HomePage, StoreError, StoreSettings, Write
from deia_hardening.store.sqlite import SqliteStore

folder, count = Path(sys.argv[1]), int(sys.argv[2])
if len(sys.argv) > 3:  # a fresh folder for each run
    folder = folder / sys.argv[3] / str(os.getpid())
    folder.mkdir(parents=True)
    print(f"in:{folder}", flush=True)
store = SqliteStore(folder / "store.db", HomePage(folder / "page"), StoreSettings(checkpoint_size=65536))
failed = 0
number = 1
while number <= count:
    try:
        text = str(number).encode()
        store.apply([Write("n", text + bytes(3000)), Write("page/n", text), Write(f"log/{number}", b"x")])
    except StoreError:
        failed += 1
        if failed > 20:
            raise SystemExit(3)
        continue
    print(number, flush=True)
    number += 1
    if number % 10 == 0:
        try:
            store.close()
        except StoreError:
            pass
store.close()
"""


def argv(folder: Path, count: int) -> list[str]:
    return [sys.executable, "-c", CHILD, str(folder), str(count)]


def check(folder: Path, acknowledged: int, message: str) -> None:
    """Everything acknowledged is there, whole, and in one piece with what was written beside it."""
    store = SqliteStore(folder / "store.db", HomePage(folder / "page"))
    try:
        entry = store.get("n")
        number = int(entry.value.rstrip(b"\0")) if entry is not None else 0
        assert number >= acknowledged, f"{number} < {acknowledged}: {message}"
        assert [key for key, _ in store.list("log/")] == sorted(f"log/{n}" for n in range(1, number + 1)), message
        assert not store.list("page/") or (store._page is not None and store._page.state().get("n") == number), message
        assert not list(folder.glob("*.damaged*")), message
    finally:
        store.close()


def cuts(tmp_path: Path, writes: int, count: int) -> None:
    faults.need("strace")
    folder = tmp_path / "recorded"
    folder.mkdir()
    trace = faults.record_child(argv(folder, writes), folder)
    seed = faults.seed()
    for number, cut in enumerate(faults.power_cuts(trace, count=count, seed=seed)):
        target = tmp_path / f"cut-{number}"
        cut.restore(target)
        check(target, max((int(mark) for mark in cut.marks), default=0), cut.describe())


@pytest.mark.fault
def test_no_acknowledged_write_is_lost_by_a_power_cut(tmp_path: Path) -> None:
    cuts(tmp_path, 25, 25)


@pytest.mark.fault
@pytest.mark.slow
def test_a_long_campaign_of_power_cuts(tmp_path: Path) -> None:
    cuts(tmp_path, 60, 200)


def failures(tmp_path: Path, limit: int, calls: tuple[str, ...]) -> int:
    faults.need("strace")
    done = 0
    command = [*argv(tmp_path, 12), "failing"]
    below = tmp_path / "failing"
    for failure in faults.each_failure(command, calls=calls, errors=("EIO", "ENOSPC"), below=below, limit=limit):
        lines = failure.stdout.split()
        acknowledged = max((int(line) for line in lines if line.isdigit()), default=0)
        assert failure.returncode in (0, 3), failure.stderr
        check(Path(lines[0].removeprefix("in:")), acknowledged, f"{failure.call} {failure.error} #{failure.nth}")
        done += 1
    return done


@pytest.mark.fault
def test_a_failed_system_call_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert failures(tmp_path, 2, ("fdatasync", "pwrite64")) > 0


@pytest.mark.fault
@pytest.mark.slow
def test_every_system_call_failed_in_turn(tmp_path: Path) -> None:
    assert failures(tmp_path, 8, ("fdatasync", "fsync", "pwrite64", "ftruncate", "openat", "unlink", "rename")) > 0


@pytest.mark.fault
def test_a_disk_that_is_full_heals_when_room_returns(tmp_path: Path) -> None:
    faults.need("tmpfs")
    with faults.small_disk(mib=4) as folder:
        store = SqliteStore(folder / "store.db", HomePage(folder / "page"))
        store.put("n", b"1")
        faults.fill(folder)
        acknowledged = 1
        for number in range(2, 60):
            try:
                store.put("n", str(number).encode() + bytes(50_000))
            except Exception as error:
                assert "nothing was" in str(error)
                break
            acknowledged = number
        else:
            raise AssertionError("the disk never filled up")
        entry = store.get("n")
        assert entry is not None and int(entry.value.rstrip(b"\0")) == acknowledged
        faults.release(folder)
        assert store.put("n", b"after") > 0
        store.close()
