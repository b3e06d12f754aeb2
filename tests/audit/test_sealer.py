"""The evidence survives kills at every step, several workers, and falling behind.

Keys are handed over and destroyed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_audit import tilestore
from deia_audit.checkpoint import Checkpoint
from deia_audit.keeper import gathering
from deia_audit.keys import KeyFolder
from deia_audit.layout import Layout
from deia_audit.seal import EpochPolicy
from deia_audit.tiles import Tile
from deia_audit.tilestore import TileStore
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import JournalReader, JournalSettings
from deia_hardening.journal.housekeeping import prune
from deia_hardening.settings import Bytes

WRITER = """
import os, signal, sys, time
from pathlib import Path
from deia_audit.layout import Layout
from deia_audit.seal import EpochPolicy
from deia_audit.tiles import Tile
from deia_audit.sealer import Sealer
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import JournalSettings, open_journal
from deia_hardening.settings import Bytes
home, step, batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
layout = Layout.of(home)
(home / "logs").mkdir(parents=True, exist_ok=True)
journal = open_journal(layout.log, JournalSettings(segment_bytes=Bytes("64KiB")), clock=SYSTEM_CLOCK)
def crash(at):
    if at == step:
        os.kill(os.getpid(), signal.SIGKILL)
sealer = Sealer(layout, journal, "test.example", EpochPolicy(40, 1e9), SYSTEM_CLOCK, crash=crash)
journal.on_batch(sealer.written, sealer.synced)
sealer.open()
print("open", flush=True)
number = 0
while number < batches or batches < 0:
    for _ in range(15):
        journal.append({"kind": "test", "text": "x" * 60})
    journal.drain(30)
    sealer.tick()
    assert not sealer.problem, sealer.problem
    number += 1
sealer.finish()
assert not sealer.problem, sealer.problem
journal.close()
"""


def write(home: Path, step: str = "", batches: int = 6) -> int:
    """Run a writer in a process of its own; its exit status."""
    return subprocess.run([sys.executable, "-c", WRITER, str(home), step, str(batches)], timeout=120).returncode


STEPS = ["keys", "begun", "tiles", "checkpoint", "next-key", "hand-over", "destroyed"]


@pytest.mark.fault
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_is_no_alarm_and_the_next_start_goes_on(tmp_path: Path, step: str) -> None:
    layout = Layout.of(tmp_path)
    assert write(tmp_path, step) == -signal.SIGKILL
    if step != "keys":  # before, there is no log yet
        report = verify(layout)
        assert report.verdict.ok, report
    assert write(tmp_path) == 0
    report = verify(layout)
    assert report.verdict is Verdict.OK_LOCAL_ONLY, report
    assert report.records == report.signed
    assert report.epoch >= 1
    assert KeyFolder(layout.keys).epochs() == [report.epoch]


@pytest.mark.fault
def test_two_workers_write_one_trail_with_one_set_of_keys(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    assert write(tmp_path, batches=1) == 0
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), "", "8"], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    report = verify(layout)
    assert report.verdict is Verdict.OK_LOCAL_ONLY, report
    assert report.records == report.signed
    assert report.epoch >= 2
    assert KeyFolder(layout.keys).epochs() == [report.epoch]


def test_a_checkpoint_never_covers_what_is_not_synced(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(5)
    size = trail.sealer.checkpoint.head.size
    trail.sealer._pending.append((size, b"x" * 32 * 3))  # written, not known to be on disk
    assert trail.sealer.tick() is None
    assert trail.sealer.checkpoint.head.size == size


def test_damaged_tiles_are_made_anew_from_the_log(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(600)
    for path in trail.layout.evidence.glob("tile/**/*"):
        if path.is_file() and ".p" in str(path):
            path.write_bytes(b"")
    trail.sealer._state = None
    trail.add(10, 600)
    report = verify(trail.layout)
    assert report.verdict is Verdict.OK_LOCAL_ONLY, report


def test_a_partial_tile_stays_while_an_older_checkpoint_needs_it_and_goes_with_the_full_one(
    make_trail: Callable[..., Any],
) -> None:
    trail = make_trail()
    sizes = []
    for start in range(0, 240, 40):
        trail.add(40, start)
        sizes.append(trail.sealer.checkpoint.head.size)
    store = trail.sealer.tiles
    for size in sizes:
        assert len(store.read(Tile(0, 0, size))) == size * 32
        assert (store.folder / Tile(0, 0, size).path).exists()
    trail.add(40, 240)
    assert not list(trail.layout.evidence.glob("tile/0/000.p/*"))
    assert len(store.read(Tile(0, 0, sizes[0]))) == sizes[0] * 32


def test_an_epoch_is_counted_in_records_and_running_time() -> None:
    policy = EpochPolicy(100, 60.0)
    assert not policy.over(0, 1e9)
    assert not policy.over(99, 59.0)
    assert policy.over(100, 0.0)
    assert policy.over(1, 60.0)


@pytest.mark.parametrize("took", [0.0, 0.01, 0.1, 0.23])
def test_a_checkpoint_is_in_time_also_where_a_tick_takes_longer_than_the_last_ones(took: float) -> None:
    assert gathering(1.0, took) + 1.5 * took <= 0.9
    assert gathering(0.1, took / 10) == pytest.approx(gathering(1.0, took) / 10)


def test_records_gather_for_a_while_also_where_ticks_are_slow() -> None:
    assert gathering(1.0, 2.0) == 0.3


def test_a_tick_after_a_kill_syncs_the_folders_that_were_made_before_it(
    make_trail: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = make_trail()
    trail.add(300)
    synced: list[str] = []
    monkeypatch.setattr(tilestore, "sync_folder", lambda folder: synced.append(str(folder)))
    again = TileStore(trail.layout.evidence)
    again.write([(Tile(0, 1, 200), b"x" * 32 * 200)])
    below = str(trail.layout.evidence)
    assert sorted(synced) == [below, f"{below}/tile", f"{below}/tile/0", f"{below}/tile/0/001.p"]
    synced.clear()
    again.write([(Tile(0, 1, 201), b"x" * 32 * 201)])
    assert synced == [f"{below}/tile/0/001.p"]


def test_a_key_is_read_again_when_its_file_is_another(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(5)
    path = trail.layout.keys / "log.key"
    text = path.read_text()
    path.write_text("damaged")
    trail.journal.append({"kind": "test"})
    assert trail.journal.drain(30)
    assert trail.sealer.tick() is None
    assert "log.key is damaged" in trail.sealer.problem
    path.write_text(text)
    trail.add(5, 10)
    assert trail.sealer.checkpoint.head.size >= 11


def test_a_pruned_trail_still_verifies_and_an_unannounced_loss_does_not(make_trail: Callable[..., Any]) -> None:
    settings = JournalSettings(
        durability="sync", compression="none", segment_bytes=Bytes("16KiB"), retain_bytes=Bytes("40KiB")
    )
    trail = make_trail(settings=settings, epoch=150)
    trail.journal.guard_retention(lambda segment: segment.first + 200 > trail.sealer.checkpoint.head.size)
    for start in range(0, 600, 50):
        trail.add(50, start)
        trail.journal.maintain()
    trail.add(5, 600)
    report = verify(trail.layout)
    assert report.first > 0
    assert report.verdict is Verdict.OK_LOCAL_ONLY, report
    assert report.epoch >= 2
    first = next(one for one in JournalReader(trail.layout.log).segments())
    first.path.unlink()
    assert verify(trail.layout).verdict is Verdict.TRUNCATED


@pytest.mark.parametrize("first", [100, 254, 255, 256, 257, 300])
def test_a_seal_beside_where_a_pruned_log_begins_is_no_alarm(make_trail: Callable[..., Any], first: int) -> None:
    """Of the tile that holds the first record the log has only the rest."""
    trail = make_trail(epoch=20)
    trail.add(first - 3)
    while trail.journal.durable_through < first:  # `audit seal` hands over and begins a segment
        trail.add(1)
    trail.journal.seal()
    for start in range(0, 600, 60):
        trail.add(60, start)
    heads = [Checkpoint.parse(trail.layout.checkpoint.read_bytes())]
    (pruned,) = prune(trail.journal, JournalSettings(retain_bytes=Bytes("4KiB")), SYSTEM_CLOCK, lambda one: False)
    trail.add(1)
    report = verify(trail.layout, heads=heads)
    assert report.verdict is Verdict.OK_WITNESSED, report
    assert report.first > first > pruned.first


def test_a_log_that_is_written_sealed_and_compressed_meanwhile_verifies(make_trail: Callable[..., Any]) -> None:
    settings = JournalSettings(durability="sync", segment_bytes=Bytes("16KiB"))
    trail = make_trail(settings=settings)
    failed: list[BaseException] = []

    def writing() -> None:
        try:
            for number in range(60):
                trail.add(37, number * 37)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=writing)
    thread.start()
    looks = 0
    while thread.is_alive() or not looks:
        through = trail.sealer.checkpoint.head.size
        report = verify(trail.layout, through=through)
        assert report.verdict is Verdict.OK_LOCAL_ONLY, report
        assert report.records >= through
        looks += 1
    thread.join()
    assert not failed
