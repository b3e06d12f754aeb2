"""`deia-hardening demo` as a stranger meets it: what it suggests works, and what goes wrong is told in a sentence."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "deia_hardening.cli", "demo"]


def environment(folder: Path) -> dict[str, str]:
    told = {key: value for key, value in os.environ.items() if not key.startswith("DEIA")}
    return {**told, "TMPDIR": str(folder)}


def test_a_port_in_use_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [*DEMO, "--port", str(port), "--seconds", "1"], env=environment(tmp_path), capture_output=True, text=True
        )
    assert ended.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.fault
def test_what_the_demo_suggests_works_also_after_a_kill(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with log.open("w") as out:
        demo = subprocess.Popen([*DEMO, "--seconds", "60"], env=environment(tmp_path), stdout=out, stderr=out)
        while not (found := re.search(r"kill -9 (\d+), then  (.*) demo --folder (\S+):", log.read_text())):
            assert demo.poll() is None, log.read_text()
            time.sleep(0.05)
        process, command, folder = found.groups()
        for verb in re.findall(rf"^  {re.escape(command)} (.+?)  +\S", log.read_text(), re.M):
            done = subprocess.run(
                [*shlex.split(command), *shlex.split(verb)], cwd=folder, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
        os.kill(int(process), signal.SIGKILL)
        assert demo.wait(30) == 0, log.read_text()
    assert "The service was killed" in log.read_text()
    again = subprocess.run(
        [*shlex.split(command), "demo", "--folder", folder, "--seconds", "1"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done") >= 3
