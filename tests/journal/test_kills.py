"""kill -9 at any instant, of one or several processes: nothing acknowledged is lost, nothing is called damage."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from deia_hardening.journal import JournalReader, JournalSettings, open_journal
from deia_hardening.testing import faults

SMALL = JournalSettings(
    durability="sync", segment_bytes=6000, sync_bytes=65536, reserve=0, idle_close=0, compression="gzip"
)


def writing(path: Path, seed: int) -> Callable[[Callable[[str], None]], None]:
    """Appends, waits, acknowledges, seals now and then; for ever. Every second one in a thread, which writes itself."""

    def work(acknowledge: Callable[[str], None]) -> None:
        rng = random.Random(seed)
        journal = open_journal(path, attrs.evolve(SMALL, durability=rng.choice(("sync", "batch"))))
        number = 0
        while True:
            receipts = []
            for _ in range(rng.choice((1, 1, 3, 20))):
                number += 1
                receipts.append((journal.append({"by": seed, "n": number, "pad": "x" * rng.choice((0, 900))}), number))
            for receipt, value in receipts:
                receipt.wait(rng.choice((30, None)))
                acknowledge(f"{receipt.seq} {seed} {value}")
            if rng.random() < 0.05:
                journal.maintain()

    def apart(acknowledge: Callable[[str], None]) -> None:
        thread = threading.Thread(target=work, args=(acknowledge,))
        thread.start()
        thread.join()

    return apart if seed % 2 else work


def check(path: Path, told: dict[int, tuple[int, int]], where: str) -> None:
    reader = JournalReader(path)
    verdict = reader.verify()
    problems = [problem for problem in verdict.problems if problem.kind != "torn"]
    assert not problems, (where, problems)
    found = {record.seq: record.event() for record in reader}
    for seq, (by, number) in told.items():
        event = found.get(seq, {})
        assert (event.get("by"), event.get("n")) == (by, number), (where, seq)
    damage = [event for event in found.values() if event.get("kind") == "journal.damage"]
    assert not damage, (where, damage)


def campaign(tmp_path: Path, seed: int, lives: int, kills: int) -> int:
    """`lives` folders, in each `kills` runs after each other; every second one beside another writing process."""
    done = 0
    for life in range(lives):
        path = tmp_path / f"life-{life}" / "log.jsonl"
        told: dict[int, tuple[int, int]] = {}
        for kill in range(kills):
            number = seed + life * 1000 + kill
            other = -1
            if kill % 4 == 3:
                other = os.fork()
                if other == 0:
                    try:
                        writing(path, -number)(lambda _: None)
                    finally:
                        os._exit(0)
            run = faults.fork_and_kill(writing(path, number), seed=number, after=(0, 40))
            if other > 0:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            assert run.killed, run.stderr
            for line in run.acknowledged:
                seq, by, value = map(int, line.split())
                told[seq] = (by, value)
            done += 1
            if kill % 5 == 4:
                check(path, told, f"DEIA_FAULT_SEED={seed}, life {life}, kill {kill}")
        journal = open_journal(path, SMALL)
        assert journal.append({"kind": "after"}).wait(30)
        journal.close()
        check(path, told, f"DEIA_FAULT_SEED={seed}, life {life}, after all kills")
        assert JournalReader(path).verify().ok
    return done


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kills(tmp_path: Path) -> None:
    assert campaign(tmp_path, faults.seed(), lives=3, kills=12) == 36


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ten_thousand_kills(tmp_path: Path) -> None:
    assert campaign(tmp_path, faults.seed(), lives=400, kills=25) == 10_000
