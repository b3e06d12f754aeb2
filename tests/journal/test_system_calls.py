"""Every system call of a journal's life failed in turn: what was acknowledged is there, and nothing is damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from deia_hardening.journal import Journal, JournalError, JournalReader, JournalSettings, open_journal
from deia_hardening.settings import Seconds
from deia_hardening.testing import faults

SETTINGS = JournalSettings(
    durability="sync", reserve=0, segment_bytes=4096, idle_close=5, retry_interval=Seconds("10ms"),
    retry_limit=Seconds("20ms"), compression="none",
)  # fmt: skip


def life(below: Path) -> Callable[[Callable[[str], None]], None]:
    """Two lives of one journal in a fresh folder: in the main thread, and in another, which writes and syncs itself."""

    def work(acknowledge: Callable[[str], None]) -> None:
        path = below / str(time.time_ns()) / "logs" / "log.jsonl"
        acknowledge(f"path {path}")

        def write(journal: Journal, first: int) -> None:
            for number in range(first, first + 6):
                receipt = journal.append({"n": number, "pad": "x" * 900})
                try:
                    receipt.wait()
                    acknowledge(f"told {receipt.seq} {number}")
                except JournalError:
                    acknowledge(f"refused {number}")
                    time.sleep(0.03)

        for first in (0, 6):
            journal = open_journal(path, SETTINGS)
            if first:
                with ThreadPoolExecutor(1) as threads:
                    threads.submit(write, journal, first).result()
            else:
                write(journal, first)
            journal.close()
        acknowledge(f"end {journal.health().state}")

    return work


CALLS = ("openat", "write", "fdatasync", "fsync", "ftruncate", "rename", "mkdir", "flock", "newfstatat", "pread64")


def check(failure: faults.Failure) -> bool:
    lines = [line.split() for line in failure.stdout.splitlines()]
    assert lines[-1][0] == "end", failure.describe()
    path = Path(lines[0][1])
    told = {int(line[1]): int(line[2]) for line in lines if line[0] == "told"}
    refused = [line for line in lines if line[0] == "refused"]
    reader = JournalReader(path)
    verdict = reader.verify()
    assert verdict.ok, (failure.describe(), verdict.problems)
    found = {record.seq: record.event() for record in reader}
    for seq, number in told.items():
        assert found.get(seq, {}).get("n") == number, (failure.describe(), seq)
    values = [event["n"] for event in found.values() if "n" in event]
    assert len(values) == len(set(values)), failure.describe()
    assert set(values) >= set(range(12)), (failure.describe(), values)  # one failure: all are written in the end
    return bool(refused)


def campaign(tmp_path: Path, calls: tuple[str, ...], limit: int) -> int:
    noticed = 0
    for failure in faults.each_failure(
        life(tmp_path), calls=calls, below=tmp_path, errors=("EIO", "ENOSPC"), limit=limit
    ):
        noticed += check(failure)
    return noticed


@pytest.mark.fault
def test_a_failed_sync_and_a_failed_write(tmp_path: Path) -> None:
    faults.need("strace")
    numbers = faults.count_calls(life(tmp_path), calls=("fdatasync", "write"), below=tmp_path)
    assert len(numbers["fdatasync"]) > 8
    seen = 0
    for failure in faults.each_failure(
        life(tmp_path), calls=("fdatasync", "write"), below=tmp_path, errors=("EIO",), limit=4
    ):
        seen += check(failure)
    assert seen >= 4


@pytest.mark.slow
@pytest.mark.fault
def test_every_system_call(tmp_path: Path) -> None:
    faults.need("strace")
    assert campaign(tmp_path, CALLS, limit=40) > 20


@pytest.mark.fault
def test_a_fenced_segment_ends_at_its_last_acknowledged_line(tmp_path: Path) -> None:
    faults.need("strace")
    for failure in faults.each_failure(life(tmp_path), calls=("fdatasync",), below=tmp_path, errors=("EIO",), limit=4):
        check(failure)
        if failure.nth != 4:
            continue
        path = Path(failure.stdout.split()[1])
        fenced = [record for record in JournalReader(path) if record.event().get("kind") == "journal.fenced"]
        assert fenced
        assert fenced[0].event()["error"] == "EIO"
        sealed = JournalReader(path).segments()[0].path.read_bytes().splitlines()
        assert msgspec.json.decode(sealed[-1])["seq"] == fenced[0].event()["synced_through"]
