"""`deia-hardening deploy` against a running service: what CI gets as exit code, what a person in a terminal sees."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control.client import Client

pytestmark = [pytest.mark.blocking, pytest.mark.fault]

GOOD = """
steps: [{weight: 50%, pause: 300ms}]
promote: timed
bake: 0s
holdback: 0%
limits: {drain: 1s}
"""
BAD = GOOD + "probes: [{path: /, status: 204}]\n"
HELD = GOOD.replace("pause: 300ms", "gate: manual")


def build(service: Any, name: str) -> Path:
    """A folder with a version to deploy, and the plans."""
    folder = Path(service.folder) / "build"
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(service.MAIN.replace('"one"', f'"{name}"'))
    for plan, text in (("good", GOOD), ("bad", BAD), ("held", HELD)):
        (folder.parent / f"{plan}.yaml").write_text(text)
    return folder


def command(service: Any, *options: str) -> list[str]:
    settings = Path(service.folder) / "settings.yaml"
    settings.write_text(f"home: {service.home}\nmigration: {{}}\n")
    return [sys.executable, "-m", "deia_hardening.cli", "deploy", "build", "--config", str(settings), *options]


@contextlib.contextmanager
def deploy(service: Any, *options: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEIA", "COV"))}
    with subprocess.Popen(
        command(service, *options), cwd=service.folder, env=environment, text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def status(service: Any) -> dict[str, Any]:
    client = Client(service.home, timeout=30)
    service.until(lambda: service.control(client))
    return dict(client.call("migration.status", {}, changes=False))


def test_what_ci_gets(front: Callable[..., Any]) -> None:
    service = front("--workers", "2", "--drain", "0s")
    build(service, "two")
    status(service)
    with deploy(service, "--plan", "bad.yaml", "--wait", "--reason", "build 7") as process:
        _, told = process.communicate(timeout=90)
    assert process.returncode == 1, told
    assert "answered 200, not 204" in told and "the old version serves" in told
    assert service.get().startswith("one")

    with deploy(service, "--plan", "good.yaml", "--wait", "--reason", "build 8") as process:
        assert process.stderr is not None
        while "ramping" not in (line := process.stderr.readline()):
            assert line, "it ended too early"
        service.restart()  # the worker that was asked is replaced meanwhile
        out, told = process.communicate(timeout=90)
    assert process.returncode == 0, told
    assert "done" in out
    assert service.get().startswith("two")

    with deploy(service, "--plan", "nowhere.yaml") as process:
        _, told = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "nowhere.yaml" in told


@pytest.mark.parametrize("terminal", [False, True], ids=["script", "terminal"])
def test_ctrl_c_leaves_the_rollout_running(front: Callable[..., Any], terminal: bool) -> None:
    service = front("--drain", "0s")
    build(service, "two")
    status(service)
    given: dict[str, Any] = {}
    ours = theirs = -1
    if terminal:
        ours, theirs = pty.openpty()
        given = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with deploy(service, "--plan", "held.yaml", *([] if terminal else ["--wait"]), **given) as process:
        service.until(lambda: status(service)["weight"] == 0.5)
        shown = ""
        if terminal:
            os.close(theirs)
            while "ramping" not in shown:
                shown += os.read(ours, 65_536).decode("utf-8", "replace")
            assert "old: app" in shown
            assert "new: v-" in shown
        process.send_signal(signal.SIGINT)
        if terminal:
            deadline = time.monotonic() + 60
            with contextlib.suppress(OSError):  # the terminal is gone with its last process
                while time.monotonic() < deadline and select.select([ours], [], [], 30)[0]:
                    shown += os.read(ours, 65_536).decode("utf-8", "replace")
            os.close(ours)
            assert process.wait(60) == 0
            assert "The rollout goes on" in shown
        else:
            process.communicate(timeout=60)
            assert process.returncode == 130
    now = status(service)
    assert (now["weight"], now["phase"]) == (0.5, "ramping")
