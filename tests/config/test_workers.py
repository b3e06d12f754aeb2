# ruff: noqa: E501
"""Several worker processes of one home: they switch together, or none of them does."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import asyncio, json, os, sys
import attrs
from deia_config import ConfigManager
from deia_hardening import harden
from deia_hardening.plugin import Plugin, Problem
from deia_hardening.settings import setting
from deia_hardening.testing.live import running

@attrs.frozen
class Limits:
    max_bots: int = setting(1, "bots", ge=0, le=64)

@attrs.frozen
class PickySettings:
    value: int = setting(1, "13 is refused by the picky worker, 14 fails to start in it")

class Picky(Plugin[PickySettings]):
    name = "picky"
    Settings = PickySettings
    async def check(self, settings):
        if settings.value == 13 and os.environ.get("PICKY"):
            raise ValueError("13 brings bad luck here")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def main():
    hardened = await asyncio.to_thread(harden, app, sys.argv[1], app_settings=Limits)
    async with running(hardened, {}) as run:
        manager = run.service(ConfigManager)
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, *rest = line.split()
            answer = {}
            if verb == "set":
                try:
                    answer["revision"] = await manager.set(rest[0], json.loads(rest[1]))
                except Problem as problem:
                    answer = {"status": problem.status, "detail": problem.detail}
            health = run.core.health()["config"]
            found = run.core.revision.settings
            answer |= {"bots": found[Limits].max_bots, "value": found[PickySettings].value, "health": health.state,
                       "detail": health.detail, "others": len(await manager.agreement.others()),
                       "refused": None if manager.refused is None else [manager.refused.by, *manager.refused.problems]}
            print(json.dumps(answer), flush=True)

sys.modules["workers_app"] = sys.modules["__main__"]
asyncio.run(main())
"""
TEXT = "config: {{content_check: 200ms, vote_timeout: {vote}}}\napp: {{max_bots: {bots}}}\npicky: {{use: 'workers_app:Picky', value: {value}}}\n"


class Worker:
    def __init__(self, folder: Path, script: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip

    def ask(self, line: str = "state") -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def until(self, true: Callable[[dict[str, Any]], Any], limit: float = 20.0) -> dict[str, Any]:
        """Wait for something that comes about in another process."""
        end = time.monotonic() + limit
        while True:
            state = self.ask()
            if true(state):
                return state
            assert time.monotonic() < end, state
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Home:
    def __init__(self, path: Path) -> None:
        self.folder = path / ".deia" / "config"
        self.folder.mkdir(parents=True)
        self.script = path / "worker.py"
        self.script.write_text(SCRIPT)
        self.workers: list[Worker] = []

    def lock(self) -> int | None:
        """The lock of the store's file, or None while somebody has it."""
        descriptor = os.open(next((self.folder.parent / "state").glob("*.db.lock")), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def freeze(self, worker: Worker) -> None:
        """Silence a worker, though not in the middle of a write to the store: nobody else could write then."""
        while True:
            worker.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
            held = self.lock()
            if held is not None:
                os.close(held)
                return
            worker.process.send_signal(signal.SIGCONT)
            time.sleep(0.01)

    def save(self, bots: int, value: int = 1, vote: str = "5s") -> None:
        beside = self.folder / ".tmp"
        beside.write_text(TEXT.format(bots=bots, value=value, vote=vote))
        beside.replace(self.folder / "hardening.yaml")

    def start(self, *environments: dict[str, str]) -> list[Worker]:
        new = [Worker(self.folder, self.script, **each) for each in environments]
        self.workers += new
        for worker in new:
            worker.answer()
        for worker in self.workers:
            worker.until(lambda state: state["others"] == len(self.workers) - 1)
        return new

    def journal(self) -> list[dict[str, Any]]:
        path = self.folder.parent / "logs" / "config-changes.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for line in lines if "action" in (record := json.loads(line))]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    for worker in home.workers:
        worker.stop()


def test_all_workers_follow_and_one_refusal_holds_all_of_them_back(home: Home) -> None:
    home.save(1)
    one, two, picky = home.start({}, {}, {"PICKY": "1"})
    home.save(2)
    for worker in (one, two, picky):
        worker.until(lambda state: state["bots"] == 2)
    home.save(3, value=13)  # only the picky worker's own check has something against it
    for worker in (one, two, picky):
        refused = worker.until(lambda state: state["refused"])["refused"]
        assert refused[0] == "picky"
        assert "13 brings bad luck here" in refused[1]
    for worker in (one, two, picky):
        state = worker.ask()
        assert (state["bots"], state["value"], state["health"]) == (2, 1, "degraded")
    home.save(4)
    for worker in (one, two, picky):
        state = worker.until(lambda state: state["bots"] == 4)
        assert (state["health"], state["refused"]) == ("ok", None)
    for worker in (one, two, picky):
        worker.stop()
    assert [record["action"] for record in home.journal()] == ["applied", "refused", "applied"]  # once for all of them


def test_an_override_needs_the_votes_of_all(home: Home) -> None:
    home.save(1)
    one, two, picky = home.start({}, {}, {"PICKY": "1"})
    answer = one.ask("set picky.value 13")
    assert answer["status"] == 409
    assert "13 brings bad luck here" in answer["detail"]
    assert not (home.folder.parent / "state" / "overrides.json").exists()
    for worker in (two, picky):
        assert worker.ask()["value"] == 1
    assert one.ask("set app.max_bots 7")["revision"] == 2
    for worker in (one, two, picky):
        worker.until(lambda state: state["bots"] == 7)
    assert picky.ask("set app.max_bots 8")["bots"] == 8  # from another worker, on top of the first one's
    one.until(lambda state: state["bots"] == 8)


@pytest.mark.slow
def test_a_dead_worker_is_not_waited_for(home: Home) -> None:
    home.save(1, vote="60s")
    one, two, dead = home.start({}, {}, {})
    dead.process.kill()
    dead.process.wait()
    home.save(2, vote="60s")
    for worker in (one, two):
        worker.until(lambda state: state["bots"] == 2)
        assert worker.ask()["others"] == 1


def test_a_worker_that_dies_during_the_vote_does_not_block_it(home: Home) -> None:
    home.save(1, vote="60s")
    one, two, frozen = home.start({}, {}, {})
    home.freeze(frozen)
    home.save(2, vote="60s")
    time.sleep(0.3)  # the vote is on: nobody may have switched while one that lives has said nothing
    assert one.ask()["bots"] == two.ask()["bots"] == 1
    frozen.process.kill()
    for worker in (one, two):
        worker.until(lambda state: state["bots"] == 2)


@pytest.mark.slow
def test_a_silent_worker_is_passed_over_and_follows_later(home: Home) -> None:
    home.save(1, vote="500ms")
    one, two, frozen = home.start({}, {}, {})
    home.freeze(frozen)
    home.save(2, vote="500ms")
    for worker in (one, two):
        worker.until(lambda state: state["bots"] == 2)
    frozen.process.send_signal(signal.SIGCONT)
    frozen.until(lambda state: state["bots"] == 2 and state["health"] == "ok")


def test_a_worker_that_was_silent_and_then_refuses_is_not_ready(home: Home) -> None:
    home.save(1, vote="500ms")
    one, picky = home.start({}, {"PICKY": "1"})
    home.freeze(picky)
    home.save(2, value=13, vote="500ms")
    one.until(lambda state: state["bots"] == 2)
    picky.process.send_signal(signal.SIGCONT)
    state = picky.until(lambda state: state["health"] == "failed")
    assert "13 brings bad luck here" in state["detail"]
    assert state["bots"] == 1
    home.save(3, vote="500ms")
    for worker in (one, picky):
        worker.until(lambda state: state["bots"] == 3 and state["health"] == "ok")


def test_a_worker_follows_by_itself_while_the_store_can_not_be_written(home: Home) -> None:
    (home.folder / "store.yaml").write_text("store: {busy_timeout: 300ms}\n")
    home.save(1)
    one, two = home.start({}, {})
    held = home.lock()
    while held is None:
        held = home.lock()
    home.save(2)
    for worker in (one, two):
        worker.until(lambda state: state["bots"] == 2)
    os.close(held)
    home.save(3)
    for worker in (one, two):
        worker.until(lambda state: state["bots"] == 3 and state["health"] == "ok")
