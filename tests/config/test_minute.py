"""Reloads every 50 ms under a real server's load: no request fails, and the process holds no more at the end."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EVERY = 0.05
CLIENTS = 4


def text(number: int) -> str:
    return (
        f"audit: {{}}\nconfig: {{history: 20}}\ndegradation: {{}}\nmigration: {{}}\nrecovery: {{}}\n"
        f"app:\n  number: {number}\n  label: n{number}\n"
    )


class Client(threading.Thread):
    """Asks over one connection, again and again."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.stop, self.asked, self.seen = port, threading.Event(), 0, -1
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self.stop.is_set():
            self.asked += 1
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                body = json.loads(answer.read())
                whole = body["whole"] and body["label"] == f"n{body['number']}" and body["number"] >= self.seen
                if answer.status != 200 or not whole:
                    self.failures.append(f"{answer.status} {body}, after {self.seen}")
                self.seen = body["number"]
            except Exception as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    config = tmp_path / ".deia" / "config"
    config.mkdir(parents=True)
    (config / "h.yaml").write_text(text(0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DEIA", "COV"))}
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "reloading_app:app", "--port", str(port), "--no-access-log"],
        env={**inherited, "PYTHONPATH": str(HERE), "RELOADING_CONFIG": str(config)},
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield port
        server.terminate()
        assert server.wait(30) in (0, -15), (tmp_path / "log").read_text()
    finally:
        server.kill()
        server.wait()
        log.close()


def holdings(port: int, seconds: float = 30) -> dict[str, int]:
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/holdings")
            found: dict[str, int] = json.loads(connection.getresponse().read())
            connection.close()
            return found
        except OSError:  # it is not up yet
            assert time.monotonic() < deadline
            time.sleep(0.05)


MORE = {"descriptors": 2, "threads": 1, "tasks": 1, "revisions": 1}
"""What may be at work by chance at the moment of a look."""


def at_rest(port: int, like: dict[str, int] | None = None) -> dict[str, int]:
    """What the process holds once idle threads have ended and it has come to rest, as far as it does."""
    for _ in range(20):
        time.sleep(1.5)
        found = holdings(port)
        if like is None or all(found[what] <= like[what] + more for what, more in MORE.items()):
            break
    return found


class Storm:
    """Saves and requests, for some seconds."""

    def __init__(self, port: int, config: Path) -> None:
        self.port, self.config, self.number, self.asked = port, config, 0, 0

    def blow(self, seconds: float) -> None:
        clients = [Client(self.port) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        due = time.monotonic()
        end = due + seconds
        while time.monotonic() < end:
            self.number += 1
            (self.config / ".h.tmp").write_text(text(self.number))
            os.replace(self.config / ".h.tmp", self.config / "h.yaml")
            due += EVERY
            time.sleep(max(0.0, due - time.monotonic()))
        deadline = time.monotonic() + 60
        while min(client.seen for client in clients) != self.number and time.monotonic() < deadline:
            time.sleep(0.01)
        for client in clients:
            client.stop.set()
            client.join()
        failures = [failure for client in clients for failure in client.failures]
        self.asked += sum(client.asked for client in clients)
        assert not failures, (len(failures), failures[:5])
        assert {client.seen for client in clients} == {self.number}  # the last save is in force


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)], ids=["slice", "minute"])
def test_reloads_every_50_ms_fail_no_request_and_leave_nothing_behind(port: int, tmp_path: Path, seconds: int) -> None:
    holdings(port)  # it is up
    storm = Storm(port, tmp_path / ".deia" / "config")
    storm.blow(seconds / 4)  # until every buffer and the history are full
    early = at_rest(port)
    storm.blow(seconds)
    late = at_rest(port, early)
    print(f"{storm.asked} requests, {storm.number} saves, {late['revision']} revisions; {early} -> {late}")
    # of saves that follow each other faster than a busy machine reads them the newest is taken
    assert late["revision"] - early["revision"] > (seconds / EVERY / 4 if seconds > 30 else 1)
    for what, more in MORE.items():
        assert late[what] <= early[what] + more, (what, early, late)
    assert late["kib"] <= early["kib"] + 8192, (early, late)
