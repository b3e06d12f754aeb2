"""Snapshots and shipping on a disk that fails: what they call done can be restored, and a failure is said."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.testing import faults
from deia_recovery.backup import vault as vaults
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.restore import Catalog, choose, fill
from deia_recovery.backup.shipping import Shipper
from deia_recovery.backup.snapshot import Job, take
from deia_recovery.backup.vault import FolderVault
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.generation import build, create_first
from deia_recovery.engine.options import EngineOptions
from deia_recovery.errors import BackupError
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State

pytestmark = [pytest.mark.fault, pytest.mark.blocking]

KEYS = KeyRing(bytes(range(32)))

CALLS = (
    "openat", "read", "write", "pread64", "fdatasync", "fsync", "rename", "unlink", "mkdir", "flock", "newfstatat",
    "getdents64", "lseek",
)  # fmt: skip


def job(engine: Engine, vault: FolderVault) -> Job:
    return Job(
        database=str(engine.database), vault=str(vault.folder), store="s", generation=1, what=("all",), chunk=4096,
        key=bytes(range(32)).hex(), encrypt=False, now=time.time(), nice=0,
    )  # fmt: skip


def work(below: Path) -> Callable[[Callable[[str], None]], None]:
    """A state that is written, shipped and taken in turn; tells each state, and how far the backups are said to go."""

    def run(acknowledge: Callable[[str], None]) -> None:
        root = below / str(time.time_ns())
        acknowledge(f"root {root}")
        engine = Engine(create_first(root).folder, EngineOptions(reserve=0))
        vault = FolderVault(root / "vault")
        ship = Shipper(engine, root, "s", vault, KEYS)
        numbers: Registry[int] = Registry("n", int, state=State(engine))
        steps: list[tuple[str, Callable[[], Any]]] = [("ship", ship.run), ("take", lambda: take(job(engine, vault)))]
        for step in range(4):
            for i in range(60):
                last = numbers.put(f"k{i}", step * 1000 + i)
            last.result(30)
            state = json.dumps(dict(numbers.items().result(30)))
            for name, do in steps[step % 2 :] + steps[: step % 2]:
                for _ in range(3):
                    try:
                        if do() is not None:
                            break
                    except Exception as error:
                        acknowledge(f"refused {name} {type(error).__name__}")
                acknowledge(f"{name} {state}")
        engine.close()

    return run


def restored(vault: Path, aside: Path) -> dict[str, int]:
    catalog = Catalog(FolderVault(vault), KEYS, "s")
    plan = choose(catalog)
    generation = build(aside, 7, "s", "test", lambda connection: fill(connection, catalog, plan))
    again = Engine(generation.folder)
    try:
        return dict(Registry("n", int, state=State(again)).items().result(30))
    finally:
        again.close()
        shutil.rmtree(aside)


def judged(failure: faults.Failure) -> bool:
    """Whether anything was refused; the last state that was said to be taken or shipped comes back."""
    lines = failure.stdout.split("\n")
    root = Path(lines[0].removeprefix("root "))
    states = [json.loads(line[5:]) for line in lines if line.startswith(("take {", "ship {"))]
    taken = [line for line in lines if line.startswith("take {")]
    if taken:
        assert restored(root / "vault", root / "aside") == states[-1], failure.describe()
    else:
        assert failure.returncode != 0, f"{failure.describe()}: nothing was said"
        with pytest.raises(BackupError):
            restored(root / "vault", root / "aside")
    shutil.rmtree(root, ignore_errors=True)
    return failure.returncode != 0 or any(line.startswith("refused") for line in lines)


def campaign(tmp_path: Path, calls: tuple[str, ...], limit: int) -> int:
    faults.need("strace")
    failures = faults.each_failure(
        work(tmp_path), calls=calls, errors=("EIO", "ENOSPC"), below=tmp_path, limit=limit, timeout=60
    )
    return sum([judged(failure) for failure in failures])


def test_what_a_failing_disk_let_be_taken_and_shipped_comes_back(tmp_path: Path) -> None:
    assert campaign(tmp_path, ("fdatasync", "rename"), 4) > 4


def test_a_power_cut_after_a_snapshot_leaves_it_whole_also_where_the_one_before_had_failed(
    tmp_path: Path, state: State, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed snapshot left in a folder that it could not sync is there, and not yet on the disk."""
    numbers: Registry[int] = Registry("n", int, state=state)
    for i in range(200):
        last = numbers.put(f"k{i}", i)
    last.result(30)
    vault = FolderVault(tmp_path / "vault")
    sync_folder = vaults.sync_folder
    failing = True

    def sync(folder: Path) -> None:
        if failing and folder.parent.name == "chunks":
            raise OSError(errno.EIO, "no")
        sync_folder(folder)

    monkeypatch.setattr(vaults, "sync_folder", sync)
    with faults.recording(vault.folder) as trace:
        for _ in range(3):
            with pytest.raises(OSError, match="no"):
                take(job(engine, vault))
        failing = False
        take(job(engine, vault))
        trace.mark("taken")
        for number in range(100):  # so that most cuts are later than that
            (vault.folder / f".later-{number}").write_bytes(b"")
    cuts = [cut for cut in faults.power_cuts(trace, count=30, seed=faults.seed(), strict=True) if cut.marks]
    assert cuts
    for cut in cuts:
        cut.restore(tmp_path / "cut")
        assert restored(tmp_path / "cut", tmp_path / "aside") == {f"k{i}": i for i in range(200)}, cut.describe()


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_each_system_call_of_backups_failed_in_turn(tmp_path: Path, call: str) -> None:
    campaign(tmp_path, (call,), 400)
