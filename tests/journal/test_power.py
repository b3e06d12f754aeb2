"""A power cut at any moment: no acknowledged record is lost, and nothing that a cut tore is called damage."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from deia_hardening.journal import JournalReader, JournalSettings, disk, housekeeping, live, open_journal
from deia_hardening.journal.fence import beside
from deia_hardening.testing import faults
from deia_hardening.testing.faults.trace import Mark

SMALL = JournalSettings(
    durability="sync", segment_bytes=4096, sync_bytes=65536, reserve=0, idle_close=0, compression="gzip"
)


def scenario(folder: Path, seed: int, trace: faults.Trace | faults.BlockDevice) -> None:
    """A journal's life: batches, waits, seals, other processes' writes, closing and opening; told in marks."""
    rng = random.Random(seed)
    path = folder / "logs" / "a.jsonl"
    writers = [open_journal(path, SMALL), open_journal(path, SMALL)]
    number = 0
    for _ in range(rng.randint(5, 25)):
        journal = rng.choice(writers)
        receipts = []
        for _ in range(rng.choice((1, 1, 2, 10, 40))):
            receipts.append((journal.append({"n": number, "pad": "x" * rng.choice((0, 50, 900))}), number))
            number += 1
        what = rng.random()
        if what < 0.6:
            for receipt, value in receipts:
                receipt.wait(rng.choice((30, None)))
                trace.mark((receipt.seq, value))
        elif what < 0.7:
            journal.seal()
        elif what < 0.8:
            journal.maintain()
        elif what < 0.9:
            journal.drain()
            for receipt, value in receipts:
                trace.mark((receipt.seq, value))
        else:
            writers.remove(journal)
            journal.close()
            writers.append(open_journal(path, SMALL))
    for journal in writers:
        journal.close()


def check(cut: faults.PowerCut, folder: Path) -> None:
    cut.restore(folder)
    check_folder(folder, cut.marks, cut.describe())


def check_folder(folder: Path, marks: Iterable[Any], what: str) -> None:
    """Open the journal once more: it goes on, everything that was acknowledged is there, nothing is called damage."""
    path = folder / "logs" / "a.jsonl"
    journal = open_journal(path, attrs.evolve(SMALL, compression="none"))
    assert journal.append({"kind": "after"}).wait(30), what
    journal.close()
    reader = JournalReader(path)
    verdict = reader.verify()
    assert verdict.ok, (what, verdict.problems)
    found = {record.seq: record.event() for record in reader}
    for seq, value in marks:
        assert found.get(seq, {}).get("n") == value, (what, seq, value)
    damage = [event for event in found.values() if event.get("kind") == "journal.damage"]
    assert not damage, (what, damage)


def campaign(tmp_path: Path, seed: int, lives: int, cuts: int, *, strict: bool = False) -> int:
    done = 0
    for life in range(lives):
        folder = tmp_path / f"life-{life}"
        # not the main thread: such a one writes and syncs itself
        with faults.recording(folder) as trace, ThreadPoolExecutor(1) as threads:
            threads.submit(scenario, folder, seed + life, trace).result()
        marks = [operation.what for operation in trace.operations if isinstance(operation, Mark)]
        check_folder(folder, marks, f"no power cut at all, DEIA_FAULT_SEED={seed}, life {life}")
        for number, cut in enumerate(faults.power_cuts(trace, count=cuts, seed=seed + life, strict=strict)):
            target = tmp_path / f"cut-{life}-{number}"
            check(cut, target)
            shutil.rmtree(target)
            done += 1
    return done


@pytest.mark.fault
def test_power_cuts(tmp_path: Path) -> None:
    assert campaign(tmp_path, faults.seed(), lives=3, cuts=12) == 36


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("strict", [False, True])
def test_a_thousand_power_cuts(tmp_path: Path, strict: bool) -> None:
    assert campaign(tmp_path, faults.seed(), lives=50, cuts=20, strict=strict) == 1000


@pytest.mark.fault
def test_power_cuts_of_a_disk_that_keeps_any_part_of_a_folders_changes(tmp_path: Path) -> None:
    assert campaign(tmp_path, faults.seed(), lives=3, cuts=12, strict=True) == 36


class Forgetful:
    """Stands in for `sync_folder` and leaves out the calls that `caller` makes, where `when` holds of the journal."""

    def __init__(self, caller: str, when: Callable[[Path], bool]) -> None:
        self.caller = caller
        self.when = when
        self.left_out = 0

    def __call__(self, folder: Path) -> None:
        if sys._getframe(1).f_code.co_name == self.caller and self.when(folder / "a.jsonl"):
            self.left_out += 1
        else:
            disk.sync_folder(folder)


def _before(path: Path) -> bool:
    return path.exists() and beside(path).exists()


def _between(path: Path) -> bool:
    return not path.exists()


def _after(path: Path) -> bool:
    return path.exists() and not beside(path).exists()


MISTAKES: dict[str, tuple[ModuleType, str, Callable[[Path], bool]]] = {
    "a new log's name": (live, "_create", lambda path: True),
    "a rotation, between the renames": (live, "rotate", _between),
    "a rotation, after the renames": (live, "rotate", _after),
    "a compression": (housekeeping, "compress", lambda path: True),
}


def rotations(tmp_path: Path) -> None:
    """One thread, one record at a time: the same operations in each run, so that no mistake is missed by luck."""
    with faults.recording(tmp_path / "home") as trace:
        journal = open_journal(tmp_path / "home" / "logs" / "a.jsonl", SMALL)
        for number in range(4):
            receipt = journal.append({"n": number})
            assert receipt.wait(30)
            trace.mark((receipt.seq, number))
            journal.seal()
        journal.maintain()  # compresses
        journal.close()
    for number, cut in enumerate(faults.power_cuts(trace, count=300, seed=1, strict=True)):
        check(cut, tmp_path / f"cut-{number}")


@pytest.mark.fault
@pytest.mark.parametrize("place", MISTAKES)
def test_a_forgotten_fsync_of_the_folder_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    module, caller, when = MISTAKES[place]
    forgetful = Forgetful(caller, when)
    monkeypatch.setattr(module, "sync_folder", forgetful)
    with pytest.raises(AssertionError, match=r"power cut \("):
        rotations(tmp_path)
    assert forgetful.left_out


@pytest.mark.fault
def test_a_rotation_cut_short_is_not_called_damage(tmp_path: Path) -> None:
    rotations(tmp_path)


@pytest.mark.fault
def test_a_rotation_that_forgets_the_next_files_name_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "sync_folder", Forgetful("rotate", _before))
    with pytest.raises(AssertionError, match="the live file was gone"):
        rotations(tmp_path)


@pytest.mark.fault
def test_a_forgotten_fsync_of_the_file_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "sync_file", lambda descriptor: None)
    monkeypatch.setattr(disk, "sync_file", lambda descriptor: None)
    with pytest.raises(AssertionError, match=r"power cut \("):
        campaign(tmp_path, 1, lives=4, cuts=40)


@pytest.mark.fault
@pytest.mark.slow
def test_power_cuts_below_a_real_file_system(tmp_path: Path) -> None:
    faults.need("fuse")
    seed = faults.seed()
    done = 0
    for life in range(5):
        with faults.block_device(mib=16) as device:
            scenario(device.folder, seed + life, device)
        for cut in device.power_cuts(count=20, seed=seed + life):
            with cut.mounted() as folder:
                check_folder(folder, cut.marks, cut.describe())
            done += 1
    assert done == 100


@pytest.mark.fault
def test_a_folder_that_another_process_has_just_made_is_synced_too(tmp_path: Path) -> None:
    with faults.recording(tmp_path / "home") as trace:
        (tmp_path / "home" / "logs").mkdir()  # by somebody who has not come to syncing it
        journal = open_journal(tmp_path / "home" / "logs" / "a.jsonl", SMALL)
        receipt = journal.append({"n": 0})
        assert receipt.wait(30)
        trace.mark((receipt.seq, 0))
        journal.close()
    for number, cut in enumerate(faults.power_cuts(trace, count=60, seed=1)):
        check(cut, tmp_path / f"cut-{number}")
