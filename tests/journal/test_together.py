"""Rotation, compression and retention by one process while others write, follow and verify the same log."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from deia_hardening.journal import Journal, JournalReader, JournalSettings, Segment, housekeeping, open_journal
from deia_hardening.journal.segments import list_sealed
from deia_hardening.testing import faults

SMALL = JournalSettings(
    durability="sync", segment_bytes=20_000, reserve=0, idle_close=0.01, compression="gzip", retain_bytes=60_000
)


def fill(journal: Journal, start: int, end: int) -> None:
    for number in range(start, end):
        assert journal.append({"n": number}).wait(10)


def kinds(path: Path) -> list[str]:
    return [str(record.event().get("kind", "")) for record in JournalReader(path)]


def test_a_segment_pruned_while_another_process_compresses_it_does_not_come_back(opened, path: Path) -> None:
    journal, keeping = opened(compression="none"), opened(compression="none", retain_bytes=1)
    fill(journal, 0, 3)
    assert journal.seal()
    fill(journal, 3, 5)
    segment = list_sealed(path)[0]
    assert not housekeeping.compress(segment, stop=lambda: bool(keeping.maintain()))
    assert list_sealed(path) == []
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    assert JournalReader(path).verify().ok


def test_two_processes_that_compress_a_segment_make_one_whole_file(opened, path: Path) -> None:
    journal = opened(compression="none")
    fill(journal, 0, 5)
    assert journal.seal()
    segment = list_sealed(path)[0]
    seen: list[bool] = []
    assert housekeeping.compress(segment, stop=lambda: bool(seen.append(housekeeping.compress(segment))))
    assert seen
    assert not any(seen)
    assert not housekeeping.compress(segment)  # it is done
    assert [found.compressed for found in list_sealed(path)] == [True]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{segment.path.name}.gz"]
    assert JournalReader(path).verify().ok


def test_compression_holds_up_no_process_that_had_the_segment_open(opened, path: Path) -> None:
    rotating, other = opened(compression="none"), opened(compression="none", idle_close=60)
    fill(other, 0, 3)
    assert rotating.seal()
    segment = list_sealed(path)[0]
    seen: list[bool] = []
    assert housekeeping.compress(segment, stop=lambda: bool(seen.append(other.append({"n": 3}).wait(10))))
    assert seen[0]


def test_a_kill_in_the_middle_of_retention_leaves_a_log_that_verifies(
    opened, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, keeping = opened(compression="none"), opened(compression="none", retain_bytes=1)
    for number in range(5):
        fill(journal, number, number + 1)
        assert journal.seal()
    left = 2

    def killed(folder: Path) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(housekeeping, "sync_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        keeping.maintain()
    monkeypatch.undo()
    numbers = [segment.number for segment in JournalReader(path).segments()]
    assert numbers[0] == 3  # two of five are gone
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems
    keeping.maintain()
    assert JournalReader(path).verify().ok


def test_a_pruned_segment_is_not_rescued_by_a_process_that_had_it_open(opened, path: Path) -> None:
    rotating, other = opened(compression="none", retain_bytes=1), opened(idle_close=60)
    fill(other, 0, 3)
    assert rotating.seal()
    rotating.maintain()
    assert list_sealed(path) == []
    fill(other, 3, 5)
    assert "journal.damage" not in kinds(path)
    assert list_sealed(path) == []
    assert JournalReader(path).verify().ok


class Overtaken(JournalReader):
    """Before each listing of the segments up to three times something happens to them."""

    def __init__(self, path: Path, happens: Callable[[], None], times: int = 3) -> None:
        super().__init__(path)
        self.happens = happens
        self.left = times

    def segments(self) -> list[Segment]:
        if self.left:
            self.left -= 1
            self.happens()
        return super().segments()


def test_following_loses_nothing_to_a_rotation_at_any_moment(opened, path: Path) -> None:
    journal = opened(compression="none")
    number = 0

    def happens() -> None:
        nonlocal number
        fill(journal, number, number + 2)
        number += 2
        assert journal.seal()

    happens()
    reader = Overtaken(path, happens, times=6)
    seen = [
        record.event()["n"]
        for record in reader.follow(start=1, poll=0, stop=lambda: not reader.left, sleep=lambda seconds: None)
    ]
    assert seen == list(range(number))
    assert number == 14


class Vanishing(JournalReader):
    """Retention works when a text is about to be opened."""

    def __init__(self, path: Path, happens: Callable[[int], None]) -> None:
        super().__init__(path)
        self.happens = happens
        self.opened = 0

    def text_of(self, segment: Segment):  # type: ignore[no-untyped-def]
        self.opened += 1
        self.happens(self.opened)
        return super().text_of(segment)


@pytest.mark.parametrize("when", [1, 2, 4])
@pytest.mark.parametrize("seal", [False, True], ids=["", "and a rotation"])
def test_verifying_is_not_alarmed_by_retention_that_overtakes_it(opened, path: Path, when: int, seal: bool) -> None:
    journal, keeping = opened(compression="none"), opened(compression="none", retain_bytes=1)
    for number in range(5):
        fill(journal, number, number + 1)
        assert journal.seal()

    def happens(opened: int) -> None:
        if opened == when:
            keeping.maintain()
            if seal:
                journal.seal()

    reader = Vanishing(path, happens)
    verdict = reader.verify()
    assert verdict.ok, verdict.problems
    assert reader.opened >= when


@pytest.mark.parametrize("gone", [1, 2])
def test_a_segment_deleted_by_hand_while_verifying_is_missed(opened, path: Path, gone: int) -> None:
    journal = opened(compression="none")
    for number in range(4):
        fill(journal, number, number + 1)
        assert journal.seal()
    victim = list_sealed(path)[gone].path
    verdict = Vanishing(path, lambda opened: victim.unlink(missing_ok=True)).verify()
    assert [problem.kind for problem in verdict.problems] == ["missing", "missing"]


# -- processes


def write(path: Path, name: int) -> None:
    rng = random.Random(name)
    journal = open_journal(path, attrs.evolve(SMALL, durability=rng.choice(("sync", "batch"))))
    number = 0
    while True:
        for _ in range(rng.choice((1, 3, 30))):
            number += 1
            receipt = journal.append({"by": name, "n": number, "pad": "x" * rng.choice((0, 50, 900))})
        assert receipt.wait(30)
        if rng.random() < 0.01:
            journal.close()
            journal = open_journal(path, SMALL)


def follow(path: Path, over: Path) -> None:
    """Every record comes, and in order, but for those that retention was quicker with, whose segments are gone then."""
    reader = JournalReader(path)
    last = -1

    def finished() -> bool:
        return over.exists() and ((newest := reader.last()) is None or newest.seq <= last)

    for record in reader.follow(start=0, poll=0.002, stop=finished):
        if record.seq != last + 1:
            assert reader.segments()[0].first >= record.seq, (last, record.seq)
        last = record.seq


def check(path: Path, over: Path) -> None:
    while not over.exists():
        reader = JournalReader(path)
        problems = [problem for problem in reader.verify().problems if problem.kind != "torn"]
        assert not problems, problems
        last = reader.last()
        found = reader.get(last.seq) if last is not None else None
        assert last is None or found is None or found.seq == last.seq


def fork(work: Callable[..., None], *arguments: object) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def together(folder: Path, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    path, over = folder / "logs" / "log.jsonl", folder / "over"
    path.parent.mkdir(parents=True)
    watching = [fork(follow, path, over), fork(check, path, over)]
    name = seed * 1000
    writing = [fork(write, path, name + number) for number in range(3)]
    name += 3
    reader = JournalReader(path)
    for _ in range(kills):
        last = reader.last()
        enough = (last.seq if last is not None else 0) + rng.randint(1, 600)
        while (last := reader.last()) is None or last.seq < enough:
            time.sleep(0.002)
            assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in watching + writing)
        victim = writing.pop(rng.randrange(len(writing)))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        writing.append(fork(write, path, name))
        name += 1
    for child in writing:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    journal = open_journal(path, SMALL)
    assert journal.append({"n": "after"}).wait(30)
    journal.close()
    over.touch()
    where = f"DEIA_FAULT_SEED={seed}"
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in watching] == [0, 0], where
    verdict = JournalReader(path).verify()
    assert verdict.ok, (where, verdict.problems)
    assert "journal.damage" not in kinds(path), where
    assert list_sealed(path)[0].number > 1, where  # retention was at work


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_writers_that_are_killed_a_follower_and_a_verifier(tmp_path: Path) -> None:
    together(tmp_path, faults.seed(), kills=8)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_thousand_kills_beside_a_follower_and_a_verifier(tmp_path: Path) -> None:
    for life in range(25):
        together(tmp_path / str(life), faults.seed() + life, kills=40)
