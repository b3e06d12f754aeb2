"""A power cut at any moment: no acknowledged record is lost, and nothing that a cut tore is called damage."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import attrs
import pytest

from deia_hardening.journal import JournalReader, JournalSettings, disk, live, open_journal
from deia_hardening.testing import faults

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
                receipt.wait(30)
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
    check_folder(cut, folder)


def check_folder(cut: faults.PowerCut | faults.BlockCut, folder: Path) -> None:
    path = folder / "logs" / "a.jsonl"
    journal = open_journal(path, attrs.evolve(SMALL, compression="none"))
    assert journal.append({"kind": "after"}).wait(30), cut.describe()
    journal.close()
    reader = JournalReader(path)
    verdict = reader.verify()
    assert verdict.ok, (cut.describe(), verdict.problems)
    found = {record.seq: record.event() for record in reader}
    for seq, value in cut.marks:
        assert found.get(seq, {}).get("n") == value, (cut.describe(), seq, value)
    damage = [event for event in found.values() if event.get("kind") == "journal.damage"]
    assert not damage, (cut.describe(), damage)


def campaign(tmp_path: Path, seed: int, lives: int, cuts: int) -> int:
    done = 0
    for life in range(lives):
        folder = tmp_path / f"life-{life}"
        with faults.recording(folder) as trace:
            scenario(folder, seed + life, trace)
        for number, cut in enumerate(faults.power_cuts(trace, count=cuts, seed=seed + life)):
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
def test_a_thousand_power_cuts(tmp_path: Path) -> None:
    assert campaign(tmp_path, faults.seed(), lives=50, cuts=20) == 1000


@pytest.mark.fault
@pytest.mark.parametrize("mistake", ["no fsync of the file", "no fsync of the folder"])
def test_planted_mistakes_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    if mistake == "no fsync of the file":
        monkeypatch.setattr(live, "sync_file", lambda descriptor: None)
        monkeypatch.setattr(disk, "sync_file", lambda descriptor: None)
    else:
        from deia_hardening.journal import fence, housekeeping

        for module in (live, disk, fence, housekeeping):
            monkeypatch.setattr(module, "sync_folder", lambda folder: None)
    with pytest.raises(AssertionError):
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
                check_folder(cut, folder)
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
