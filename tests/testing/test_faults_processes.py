"""Kills, failed system calls and full disks really happen, and from their seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deia_hardening.testing import faults

COUNTS = "import sys\nfor n in range(100000):\n    print(n, flush=True)\n"


@pytest.mark.fault
def test_a_child_is_killed_after_what_it_acknowledged() -> None:
    run = faults.run_and_kill([sys.executable, "-c", COUNTS], seed=3, after=(5, 50))
    assert run.killed
    assert run.returncode == -9
    assert run.acknowledged == [str(number) for number in range(len(run.acknowledged))]
    assert len(run.acknowledged) >= 5


def test_a_child_that_ends_was_not_killed() -> None:
    run = faults.run_and_kill([sys.executable, "-c", "print('one')"], seed=1, after=(100, 100))
    assert (run.killed, run.returncode, run.acknowledged) == (False, 0, ["one"])


CAREFUL = """
import os, sys, tempfile
folder = tempfile.mkdtemp(dir=sys.argv[1])
path = os.path.join(folder, "file")
try:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"data"); os.fsync(fd)
    print("stored")
except OSError as error:
    print("failed", error.errno)
"""


@pytest.mark.fault
def test_each_system_call_fails_in_turn(tmp_path: Path) -> None:
    faults.need("strace")
    argv = [sys.executable, "-c", CAREFUL, str(tmp_path)]
    assert faults.count_calls(argv, calls=("fsync", "write"), below=tmp_path)["fsync"] == [1]
    seen = {
        (failure.call, failure.error): failure.stdout.strip()
        for failure in faults.each_failure(argv, calls=("write", "fsync"), errors=("EIO", "ENOSPC"), below=tmp_path)
    }
    assert seen == {
        ("write", "EIO"): "failed 5",
        ("write", "ENOSPC"): "failed 28",
        ("fsync", "EIO"): "failed 5",
        ("fsync", "ENOSPC"): "failed 28",
    }


@pytest.mark.fault
def test_a_small_disk_fills_and_has_room_again() -> None:
    faults.need("tmpfs")
    with faults.small_disk(mib=1) as folder:
        faults.fill(folder)
        with pytest.raises(OSError, match="No space"):
            (folder / "x").write_bytes(bytes(100_000))
        faults.release(folder)
        (folder / "x").write_bytes(bytes(100_000))
    assert not folder.exists()


def test_the_seed_comes_from_the_environment_and_is_printed(monkeypatch, capsys) -> None:
    monkeypatch.setenv(faults.SEED_VARIABLE, "42")
    assert faults.seed() == 42
    assert "DEIA_FAULT_SEED=42" in capsys.readouterr().out


def test_an_unknown_tool_is_an_error() -> None:
    with pytest.raises(ValueError, match="strace"):
        faults.available("magic")
