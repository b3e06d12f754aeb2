"""Every system call of a journal's life failed in turn: what was acknowledged is there, and nothing is damaged."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from deia_hardening.journal import JournalReader
from deia_hardening.testing import faults

CHILD = """
import sys, tempfile, threading, time
from deia_hardening.journal import JournalError, JournalSettings, open_journal
from deia_hardening.settings import Seconds
folder = tempfile.mkdtemp(dir=sys.argv[1])
path = folder + "/logs/log.jsonl"
settings = JournalSettings(durability="sync", reserve=0, segment_bytes=4096, idle_close=5, retry_interval=0.01,
                           retry_limit=0.02, compression="none")
print("path", path, flush=True)
def write(first):
    for number in range(first, first + 6):
        receipt = journal.append({"n": number, "pad": "x" * 900})
        try:
            receipt.wait()
            print("told", receipt.seq, number, flush=True)
        except JournalError as error:
            print("refused", number, flush=True)
            time.sleep(0.03)
for life in range(2):
    journal = open_journal(path, settings)
    if life:  # a thread that is not the main one writes and syncs itself
        thread = threading.Thread(target=write, args=(6,))
        thread.start()
        thread.join()
    else:
        write(0)
    journal.close()
print("end", journal.health().state, flush=True)
"""

CALLS = ("openat", "write", "fdatasync", "fsync", "ftruncate", "rename", "mkdir", "flock", "newfstatat", "pread64")


def check(failure: faults.Failure) -> bool:
    lines = [line.split() for line in failure.stdout.splitlines()]
    if not lines:
        return False  # another thread's call of that number failed: the interpreter did not start
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
    argv = [sys.executable, "-c", CHILD, str(tmp_path)]
    for failure in faults.each_failure(argv, calls=calls, below=tmp_path, errors=("EIO", "ENOSPC"), limit=limit):
        noticed += check(failure)
    return noticed


@pytest.mark.fault
def test_a_failed_sync_and_a_failed_write(tmp_path: Path) -> None:
    faults.need("strace")
    argv = [sys.executable, "-c", CHILD, str(tmp_path)]
    numbers = faults.count_calls(argv, calls=("fdatasync", "write"), below=tmp_path)
    assert len(numbers["fdatasync"]) > 8
    seen = 0
    for failure in faults.each_failure(argv, calls=("fdatasync", "write"), below=tmp_path, errors=("EIO",), limit=4):
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
    argv = [sys.executable, "-c", CHILD, str(tmp_path)]
    for failure in faults.each_failure(argv, calls=("fdatasync",), below=tmp_path, errors=("EIO",), limit=4):
        check(failure)
        if failure.nth != 4:
            continue
        path = Path(failure.stdout.split()[1])
        fenced = [record for record in JournalReader(path) if record.event().get("kind") == "journal.fenced"]
        assert fenced
        assert fenced[0].event()["error"] == "EIO"
        sealed = JournalReader(path).segments()[0].path.read_bytes().splitlines()
        assert msgspec.json.decode(sealed[-1])["seq"] == fenced[0].event()["synced_through"]
