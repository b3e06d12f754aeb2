"""The folder where children meet their parents: records, sockets, and who supervises. Strangers are left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deia_hardening.errors import HardeningError
from deia_hardening.store.filesystem import boot_id
from deia_hardening.upstream.rundir import ChildRecord, RunDir, end_survivor, process_start
from deia_hardening.upstream.supervision import Supervision


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.fault
def test_a_survivor_is_reaped_and_a_stranger_with_its_pid_is_not(home):
    rundir = RunDir(home)
    rundir.prepare()
    stubborn = "import signal,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"
    survivor = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        assert survivor.stdout is not None
        survivor.stdout.readline()
        for name, pid, started in (
            ("survivor", survivor.pid, process_start(survivor.pid)),
            ("stranger", stranger.pid, "1"),
            ("gone", 2**22 - 3, "1"),
        ):
            rundir.write(ChildRecord(name, pid, started, boot_id(), str(home / f"{name}.sock"), "00"))
        (rundir.path / "child-damaged.json").write_text("{")
        assert rundir.try_lock()
        assert rundir.reap(0.2) == [survivor.pid]
        assert survivor.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list(rundir.path.glob("child-*")) == []
    finally:
        rundir.unlock()
        for process in (survivor, stranger):
            process.kill()
            process.wait()
        if survivor.stdout is not None:
            survivor.stdout.close()


def test_another_boot_is_never_signalled():
    mine = ChildRecord("x", os.getpid(), process_start(os.getpid()), "another-boot", "/x", "00")
    assert end_survivor(mine, 0.1) is False


def test_one_supervisor_per_home(home):
    first, second = Supervision(home), Supervision(home)
    first.enter()
    assert first.lead(0.1)
    assert not second.lead(0.1)
    first.leave()
    second.enter()
    assert second.lead(0.1)
    second.leave()


def test_records_are_private_and_the_key_is_not_shown(home):
    rundir = RunDir(home)
    rundir.prepare()
    record = ChildRecord("a", 1, "2", "b", "/s", "c0ffee")
    rundir.write(record)
    (file,) = rundir.path.glob("child-*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "c0ffee" not in repr(record)
    assert rundir.read("a") == record


def test_long_homes_get_a_short_private_folder(request, tmp_path, monkeypatch):
    short = tempfile.TemporaryDirectory(dir="/tmp")  # xdist's own folders are long already
    request.addfinalizer(short.cleanup)
    monkeypatch.setattr("tempfile.tempdir", short.name)
    rundir = RunDir(tmp_path / ("x" * 120))
    path = rundir.socket_path("a")
    assert len(os.fsencode(path)) <= 107
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_a_run_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HardeningError, match="not a folder of this user"):
        RunDir(tmp_path / "home").prepare()
