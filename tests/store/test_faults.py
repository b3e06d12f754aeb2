"""Power cuts, failed system calls, a full disk: what was acknowledged is there, and nothing is called damaged."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deia_hardening.settings import Bytes, Seconds
from deia_hardening.store import HomePage, StoreError, StoreSettings, Write
from deia_hardening.store.sqlite import SqliteStore
from deia_hardening.testing import faults

CALLS = (
    "fdatasync", "fsync", "pwrite64", "pread64", "ftruncate", "openat", "unlink", "rename", "flock", "fcntl", "mkdir",
    "newfstatat",
)  # fmt: skip


def live(folder: Path, count: int, acknowledge: Callable[[str], None]) -> None:
    """A store's life: batches, one after the other, each tried again until it is taken; closed now and then."""
    settings = StoreSettings(checkpoint_size=Bytes("64KiB"), busy_timeout=Seconds("1s"))
    store = SqliteStore(folder / "store.db", HomePage(folder / "page"), settings)
    failed, number = 0, 1
    while number <= count:
        text = str(number).encode()
        try:
            store.apply([Write("n", text + bytes(3000)), Write("page/n", text), Write(f"log/{number}", b"x")])
        except StoreError:
            failed += 1
            if failed > 20:
                raise
            continue
        acknowledge(str(number))
        number += 1
        if number % 10 == 0:
            with contextlib.suppress(StoreError):
                store.close()
    store.close()


CHILD = """
import functools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_faults import live
live(Path(sys.argv[1]), int(sys.argv[2]), functools.partial(print, flush=True))
"""


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
    argv = [sys.executable, "-c", CHILD, str(folder), str(writes), str(Path(__file__).parent)]
    trace = faults.record_child(argv, folder)
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

    def work(acknowledge: Callable[[str], None]) -> None:
        folder = tmp_path / str(time.time_ns())
        acknowledge(f"in:{folder}")
        live(folder, 12, acknowledge)

    for failure in faults.each_failure(work, calls=calls, errors=("EIO", "ENOSPC"), below=tmp_path, limit=limit):
        lines = failure.stdout.split()
        acknowledged = max((int(line) for line in lines if line.isdigit()), default=0)
        assert acknowledged == 12 or "StoreError" in failure.stderr or "StoreUnavailable" in failure.stderr, (
            failure.describe()
        )
        check(Path(lines[0].removeprefix("in:")), acknowledged, failure.describe())
        done += 1
    return done


@pytest.mark.fault
def test_a_failed_system_call_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert failures(tmp_path, 2, ("fdatasync", "pwrite64")) > 0


@pytest.mark.fault
@pytest.mark.slow
def test_every_system_call_failed_in_turn(tmp_path: Path) -> None:
    assert failures(tmp_path, 40, CALLS) > 0


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
