"""A crash is never called tampering: kills at random moments and power cuts, with heads that were told before.

After each one the trail verifies against the last checkpoint that anybody was told, and the next start goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import JournalSettings, open_journal
from deia_hardening.settings import Bytes
from deia_hardening.testing import faults

SETTINGS = JournalSettings(segment_bytes=Bytes("16KiB"), compression="none")
NO_ALARM = (Verdict.OK_WITNESSED, Verdict.TORN_TAIL)


def life(home: Path, rounds: int, tell: Callable[[str], None]) -> None:
    """Open a trail, record and seal in rounds, close; `tell` is given each checkpoint."""
    layout = Layout.of(home)
    layout.log.parent.mkdir(parents=True, exist_ok=True)
    journal = open_journal(layout.log, SETTINGS, clock=SYSTEM_CLOCK)
    sealer = Sealer(layout, journal, "test.example", EpochPolicy(60, 1e9), SYSTEM_CLOCK)
    journal.on_batch(sealer.written, sealer.synced)
    sealer.open()
    number = 0
    while number != rounds:
        for _ in range(1 + number * 7 % 40):
            journal.append({"kind": "test", "text": "x" * 60})
        assert journal.drain(30)
        made = sealer.tick()
        assert not sealer.problem, sealer.problem
        if made is not None:
            tell(str(made))
        number += 1
    sealer.finish()
    assert not sealer.problem, sealer.problem
    assert sealer.checkpoint is not None
    tell(str(sealer.checkpoint))
    journal.close()


def check(home: Path, told: Checkpoint | None, message: str) -> None:
    layout = Layout.of(home)
    if told is None and not layout.checkpoint.exists():
        return  # there was no log yet
    heads = [] if told is None else [told]
    report = verify(layout, heads=heads)
    allowed = NO_ALARM if told is not None else (*NO_ALARM, Verdict.OK_LOCAL_ONLY)
    assert report.verdict in allowed, f"{message}: {report}"
    assert report.signed >= (told.head.size if told is not None else 0), f"{message}: {report}"


def kills(folder: Path, count: int, seed: int, *, lives: int = 25) -> None:
    home = folder / "home"
    told: Checkpoint | None = None
    for number in range(count):
        if number % lives == 0:
            shutil.rmtree(home, ignore_errors=True)
            told = None
        notes: list[str] = []

        def work(acknowledge: Callable[[str], None]) -> None:
            life(home, -1, lambda text: acknowledge(text.replace("\n", "|")))

        run = faults.fork_and_kill(work, seed=seed + number, after=(0, 6), jitter=0.03)
        message = f"DEIA_FAULT_SEED={seed}, kill {number}"
        assert run.killed, f"{message}: {run.stderr}"
        notes = [line.replace("|", "\n") for line in run.acknowledged]
        if notes:
            told = Checkpoint.parse(notes[-1])
        check(home, told, message)
    life(home, 2, notes.append)
    report = verify(Layout.of(home))
    assert report.verdict is Verdict.OK_LOCAL_ONLY, report
    assert report.records == report.signed


def power_cuts(folder: Path, lives: int, cuts: int, seed: int, *, strict: bool = False) -> None:
    for number in range(lives):
        home = folder / f"home-{number}"
        with faults.recording(home) as trace:
            life(home, 4, trace.mark)
            life(home, 3, trace.mark)
        for cut in faults.power_cuts(trace, count=cuts, seed=seed + number, strict=strict):
            restored = folder / "cut"
            cut.restore(restored)
            told = Checkpoint.parse(cut.marks[-1]) if cut.marks else None
            check(restored, told, cut.describe())
            later: list[str] = []
            life(restored, 1, later.append)
            check(restored, Checkpoint.parse(later[-1]), f"after a start behind a {cut.describe()}")
            shutil.rmtree(restored)


@pytest.mark.fault
def test_kills_at_random_moments_are_no_alarm(tmp_path: Path) -> None:
    kills(tmp_path, 20, faults.seed())


@pytest.mark.fault
@pytest.mark.parametrize("strict", [False, True])
def test_power_cuts_are_no_alarm(tmp_path: Path, strict: bool) -> None:
    power_cuts(tmp_path, 1, 12, faults.seed(), strict=strict)


@pytest.mark.slow
@pytest.mark.fault
def test_a_thousand_kills_are_no_alarm(tmp_path: Path) -> None:
    kills(tmp_path, 1000, faults.seed())


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("strict", [False, True])
def test_a_thousand_power_cuts_are_no_alarm(tmp_path: Path, strict: bool) -> None:
    power_cuts(tmp_path, 20, 50, faults.seed(), strict=strict)
