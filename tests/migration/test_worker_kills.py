"""Workers are killed and rolled at random instants of rollouts: each ends, and all workers serve what it came to."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control.client import Client, NotRunning
from deia_hardening.problem import Problem

pytestmark = [pytest.mark.blocking, pytest.mark.fault]


def workers_of(service: Any) -> list[int]:
    """The worker processes of the supervisor."""
    found = []
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(one.name)
            state, parent = (one / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == service.process.pid and state != "Z" and b"cli.worker" in (one / "cmdline").read_bytes():
                found.append(pid)
    return found


def answers(service: Any, number: int = 12) -> set[str]:
    """Who answers; a connection that dies with its worker is made again, a refusal is none."""
    found: set[str] = set()

    def asked() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found.add("app" if int(service.get().split()[1]) in workers_of(service) else "beside")
            return True
        return False

    for _ in range(number):
        service.until(asked)
    return found


def begin(client: Client, to: str) -> str:
    """Start a rollout through whichever worker answers; the id of the one that runs then."""
    for _ in range(400):
        try:
            return str(client.call("migration.start", {"version": to}, reason="campaign")["rollout"])
        except NotRunning:
            time.sleep(0.05)
        except Problem as problem:  # the answer to the last try was lost with its worker
            assert problem.status == 409 and problem.extensions.get("version") == to, problem.detail
            return str(problem.extensions["rollout"])
    raise AssertionError("nobody answers")


def rounds(service: Any, number: int, seed: int) -> None:
    print(f"seed {seed}")
    chooser = random.Random(seed)
    client = Client(service.home, timeout=30)
    service.until(lambda: service.control(client))
    serves = "app"
    for turn in range(number):
        to = "beside" if serves == "app" else "app"
        rollout = begin(client, to)
        time.sleep(chooser.random())
        what = chooser.choice(["one", "both", "roll"])
        if what == "roll":
            service.process.send_signal(signal.SIGHUP)
        else:
            for pid in workers_of(service)[: 1 if what == "one" else 2]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        status: dict[str, Any] = {}

        def over(status: dict[str, Any] = status, rollout: str = rollout) -> bool:
            with contextlib.suppress(NotRunning, Problem):
                status.update(client.call("migration.status", {}, changes=False))
            return status.get("rollout") == rollout and status["phase"] in ("done", "rolled-back")

        service.until(over)
        serves = to if status["phase"] == "done" else serves
        service.until(lambda serves=serves: answers(service) == {serves})
        print(turn, what, to, status["phase"])


def test_whatever_is_killed_a_rollout_ends_and_all_workers_agree(front: Callable[..., Any]) -> None:
    rounds(front("--workers", "2", "--drain", "0s"), 3, seed=21)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_rollouts_with_kills(front: Callable[..., Any], seed: int) -> None:
    rounds(front("--workers", "2", "--drain", "0s"), 40, seed)
