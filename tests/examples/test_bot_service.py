"""The example does what it says, hardened; and a kill -9 under load loses nothing that was acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from deia_hardening.journal import JournalReader

EXAMPLE = Path(__file__).parents[2] / "examples" / "bot_service"


class Service:
    """The example as a process of its own, on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / ".deia" / "config"
        if not self.config.exists():
            shutil.copytree(EXAMPLE / ".deia" / "config", self.config)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> Service:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DEIA")}
        environment |= {"BOT_SERVICE_CONFIG": str(self.config), "PYTHONPATH": str(EXAMPLE)}
        environment["DEIA__REQUESTS__LAME_DUCK"] = "0s"
        command = [sys.executable, "-m", "deia_hardening.cli", "run", "bot_service.main:app", "--port", str(self.port)]
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "warning"], cwd=self.folder, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.call("GET", "/")[0] == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "service.log").read_text())

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            payload = None if body is None else json.dumps(body)
            head = {"content-type": "application/json"} if payload else {}
            connection.request(method, path, payload, {**head, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            data = answer.read()
            kind = answer.headers.get("content-type", "")
            return answer.status, json.loads(data) if data and "json" in kind else data.decode()
        finally:
            connection.close()

    def end(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            if number == signal.SIGKILL:  # the supervisor and its worker: as when the machine goes
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            self.process.wait(40)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made.start()
    made.end(signal.SIGKILL)
    print((tmp_path / "service.log").read_text())  # shown when the test failed


def wait_for(check: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_bots_work_and_everything_is_told(service: Service) -> None:
    assert service.call("POST", "/api/bots", {"id": "calc", "skill": "arithmetic"})[0] == 201
    assert service.call("POST", "/api/bots", {"id": "calc", "skill": "arithmetic"})[0] == 409
    with connect(f"ws://127.0.0.1:{service.port}/api/events") as events:
        assert service.call("POST", "/api/bots/calc/launch")[1]["state"] == "running"
        assert json.loads(events.recv(10))["event"] == "bot.launched"
        status, task = service.call(
            "POST", "/api/tasks", {"skill": "arithmetic", "text": "6*7", "priority": 3, "key": "k"}
        )
        assert status == 202
        assert (
            service.call("POST", "/api/tasks", {"skill": "arithmetic", "text": "6*7", "key": "k"})[1]["id"]
            == task["id"]
        )
        done = wait_for(lambda: (t := service.call("GET", f"/api/tasks/{task['id']}")[1])["state"] == "done" and t)
        assert done["result"] == 42
    assert service.call("GET", "/api/bots")[1][0]["done"] == 1
    progress = service.call("GET", f"/api/tasks/{task['id']}/progress")[1]
    assert "id: 1" in progress
    assert '"done"' in progress
    resumed = service.call("GET", f"/api/tasks/{task['id']}/progress", last_event_id="1")[1]
    assert "id: 1\n" not in resumed
    assert service.call("POST", "/api/bots/calc/messages", {"sender": "other", "text": "hello"})[0] == 201
    assert [m["text"] for m in service.call("GET", "/api/bots/calc/messages")[1]] == ["hello"]
    assert service.call("GET", "/api/bots/calc/messages")[1] == []
    assert service.call("GET", "/api/scaling/status")[1]["running"] == 1
    assert service.call("POST", "/api/scaling/up")[0] == 409
    assert service.call("POST", "/api/scaling/down")[0] == 400, "the settings demand a reason"
    assert service.call("POST", "/api/scaling/down", deia_reason="test")[0] == 409
    assert service.call("POST", "/api/bots/calc/stop")[1]["state"] == "stopped"
    service.end(signal.SIGTERM)
    trail = service.folder / ".deia" / "logs" / "audit-trail.jsonl"
    assert JournalReader(trail).verify().ok
    text = trail.read_text()
    for word in ("/api/tasks/{task_id}", "bot.assigned", "registry", "service.stopping"):
        assert word in text


def test_the_second_version_does_the_tasks_that_go_to_it(service: Service) -> None:
    """During a rollout a task belongs to a version; after a restart too. Each version has workers of its own."""

    def done(number: int) -> bool:
        status, task = service.call("POST", "/api/tasks", {"skill": "arithmetic", "text": f"{number} + 1"})
        assert status == 202
        return wait_for(lambda: service.call("GET", f"/api/tasks/{task['id']}")[1]["state"] == "done")

    service.call("POST", "/api/bots", {"id": "calc", "skill": "arithmetic"})
    service.call("POST", "/api/bots/calc/launch")
    started = subprocess.run(
        [sys.executable, "-m", "deia_hardening.cli", "migration", "start", "2", "--config", str(service.config)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 0, started.stderr
    answers: set[str] = set()

    def moved() -> bool:
        answers.add(service.call("GET", "/")[1]["version"])
        return answers == {"1", "2"}

    wait_for(moved)
    assert all(done(number) for number in range(20)), "of twenty keys some go to either version"
    service.end(signal.SIGKILL)
    service.start()
    assert all(done(number) for number in range(20))


@pytest.mark.fault
def test_a_kill_under_load_loses_nothing_acknowledged(service: Service) -> None:
    seed = int(os.environ.get("DEIA_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed}")
    choose = random.Random(seed)
    registered: list[str] = []
    submitted: dict[str, int] = {}
    finished: dict[str, Any] = {}
    lock = threading.Lock()
    going = threading.Event()
    going.set()

    def load(worker: int) -> None:
        number = 0
        while going.is_set():
            number += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                name = f"bot-{worker}-{number}"
                if number % 5 == 0 and service.call("POST", "/api/bots", {"id": name, "skill": "arithmetic"})[0] == 201:
                    with lock:
                        registered.append(name)
                body = {"skill": "arithmetic", "text": f"{worker} * {number}", "priority": number % 3}
                status, task = service.call("POST", "/api/tasks", body)
                if status == 202:
                    with lock:
                        submitted[task["id"]] = worker * number
                    status, seen = service.call("GET", f"/api/tasks/{task['id']}")
                    if status == 200 and seen["state"] == "done":
                        with lock:
                            finished[task["id"]] = seen["result"]

    service.call("POST", "/api/bots", {"id": "worker", "skill": "arithmetic"})
    service.call("POST", "/api/bots/worker/launch")
    for _ in range(2):
        going.set()
        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5 + choose.random())
        service.end(signal.SIGKILL)
        going.clear()
        for thread in threads:
            thread.join()
        service.start()
        assert {bot["id"] for bot in service.call("GET", "/api/bots")[1]} >= {*registered, "worker"}
        for task_id, result in submitted.items():
            status, task = service.call("GET", f"/api/tasks/{task_id}")
            assert status == 200, f"task {task_id} was acknowledged and is gone"
            if task_id in finished:
                assert (task["state"], task["result"]) == ("done", result)
    assert submitted

    def all_done() -> bool:
        states = [service.call("GET", f"/api/tasks/{task_id}")[1]["state"] for task_id in list(submitted)[-20:]]
        return all(state == "done" for state in states)

    wait_for(all_done, 90)  # those in flight are leased again when their lease has run out
    busy = {one["task"] for one in service.call("GET", "/api/assignments")[1]}
    assert not busy & set(finished)
    service.end(signal.SIGTERM)
    assert JournalReader(service.folder / ".deia" / "logs" / "audit-trail.jsonl").verify().ok
    assert "crash" in (service.folder / ".deia" / "logs" / "disaster-recovery.jsonl").read_text()
