"""Budgets and quotas of a service with two workers: drawn on together, and going on after a kill."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.blocking

MAIN = """
import asyncio, json, os
from deia_degradation import DegradationManager
from deia_degradation.fallback.outgoing import NoBotLeft
from deia_hardening import current, harden

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    found = "here"
    manager = current(DegradationManager)
    if scope["path"] == "/ask":
        try:
            async with manager.attempt("llm", tokens=10) as attempt:
                found = attempt.bot.id
                await asyncio.sleep(0.02)
        except NoBotLeft:
            found = None
    elif scope["path"] == "/refused":
        async with manager.attempt("llm") as attempt:
            found = attempt.bot.id
            attempt.exhausted(3600.0)
    elif scope["path"] == "/states":
        found = {bot.id: bot.state for bot in manager.pool("llm").status()}
    body = json.dumps([os.getpid(), found]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

app = harden(app, "config")
"""


class Service:
    """`deia-hardening run --workers 2` in a folder."""

    def __init__(self, folder, settings):
        (folder / "config").mkdir(exist_ok=True)
        (folder / "config" / "hardening.json").write_text(json.dumps({"home": str(folder / "home"), **settings}))
        (folder / "main.py").write_text(MAIN)
        self.folder = folder
        self.start()

    def start(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "deia_hardening.cli", "run", "main:app", "--workers", "2", "--port"]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DEIA", "COV"))}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port)], cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env={**inherited, "PYTHONPATH": str(self.folder)},
            )  # fmt: skip

    def get(self, path):
        """Status and answer; None while nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if answer.status == 200 else None
        return None

    def ask(self, path, enough):
        """The answers to many requests, eight at a time, until `enough` of them."""
        deadline, found = time.monotonic() + 180, []
        with ThreadPoolExecutor(8) as pool:
            while not enough(found):
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
                found += [one for one in pool.map(self.get, [path] * 16) if one is not None]
        return found

    def kill(self):
        """kill -9 for all of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def service(tmp_path):
    made = []

    def start(settings):
        made.append(Service(tmp_path, settings))
        return made[-1]

    yield start
    for one in made:
        one.kill()


def answered_by(answers):
    return {answer[0] for status, answer in answers if status == 200}


def test_two_workers_draw_on_one_budget_and_a_kill_gives_nobody_a_second_one(service):
    pool = {"bots": [{"id": "a", "quota": "key"}], "quotas": {"key": {"tokens": 305, "per": "1d"}}}
    both = service({"degradation": {"pools": {"llm": pool}}})
    both.ask("/", lambda found: len(answered_by(found)) == 2)
    answers = both.ask("/ask", lambda found: len(answered_by(found)) == 2 and found[-1][1][1] is None)
    assert sum(answer[1] == "a" for _, answer in answers) == 30
    both.kill()
    both.start()
    answers = both.ask("/ask", lambda found: len(answered_by(found)) == 2)
    assert all(answer[1] is None for _, answer in answers)


def test_two_workers_count_a_client_together_and_go_on_after_a_kill(service):
    both = service({"degradation": {"admission": {"client_quota": {"requests": 50, "per": "1d"}}}})
    served = both.ask("/", lambda found: [status for status, _ in found][-8:] == [429] * 8)
    assert sum(status == 200 for status, _ in served) == 50
    both.kill()
    both.start()
    assert {status for status, _ in both.ask("/", len)} == {429}


def test_a_key_that_rests_does_so_on_both_workers_and_after_a_kill(service):
    pool = {"bots": [{"id": "a", "quota": "key"}, {"id": "b", "quota": "key"}, {"id": "c"}]}
    both = service({"degradation": {"pools": {"llm": pool}}})
    both.ask("/", lambda found: len(answered_by(found)) == 2)
    told = None
    while told is None or told[1][1] == "c":
        told = both.get("/refused")
    resting = {"a": "resting", "b": "resting"}

    def known(found):
        return len({answer[0] for _, answer in found if resting.items() <= answer[1].items()}) == 2

    both.ask("/states", known)
    both.kill()
    both.start()
    answers = both.ask("/states", lambda found: len(answered_by(found)) == 2)
    assert all(resting.items() <= answer[1].items() for _, answer in answers)
