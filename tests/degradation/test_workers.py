"""Several worker processes on one home: pins and drains act on each at its next request, and outlive their maker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest

WORKER = textwrap.dedent(
    """
    import asyncio, json, sys
    from deia_degradation import DegradationManager
    from deia_hardening import feature, harden
    from deia_hardening.testing import running

    async def app(scope, receive, send):
        if scope["type"] == "http":
            body = b"on" if feature("scaling", default=True) else b"off"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

    pools = {"llm": {"bots": [{"id": "a"}, {"id": "b"}]}}
    hardened = harden(app, {"home": sys.argv[1], "degradation": {"disable_features": ["scaling"], "pools": pools}})

    async def main():
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with running(hardened, {}) as live:
            manager = live.service(DegradationManager)
            print("{}", flush=True)
            while line := await lines.readline():
                verb, *rest = line.decode().split()
                if verb == "pin":
                    await manager.pin(rest[0], seconds=float(rest[1]), reason="worker")
                elif verb == "unpin":
                    await manager.unpin()
                elif verb in ("drain", "restore"):
                    act = getattr(manager.drains, verb)
                    await manager.host.runtime.run(act, manager.pool("llm"), rest[0], "by hand")
                elif verb == "call":  # with no request before it
                    async with manager.attempt("llm") as attempt:
                        print(json.dumps(attempt.bot.id), flush=True)
                    continue
                answer = await live.get("/")
                found = {"status": answer.status, "body": answer.body.decode()[:3], "mode": manager.control.mode.value}
                if verb == "states":
                    found = {bot.id: bot.state for bot in manager.pool("llm").status()}
                print(json.dumps(found), flush=True)

    asyncio.run(main())
    """
)


class Worker:
    def __init__(self, home):
        command = [sys.executable, "-c", WORKER, str(home)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self):
        line = self.process.stdout.readline()
        assert line, "the worker ended"
        return json.loads(line)

    def __call__(self, line="look"):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()


@pytest.fixture
def workers(tmp_path):
    started = []

    def start():
        started.append(Worker(tmp_path / ".deia"))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()
        worker.process.stdin.close()
        worker.process.stdout.close()


def test_a_pin_acts_on_every_worker_at_its_next_request_and_outlives_its_maker(workers):
    one, two = workers(), workers()
    assert two()["body"] == "on"
    assert one("pin DEGRADED 600")["body"] == "off"
    assert two() == {"status": 200, "body": "off", "mode": "DEGRADED"}
    one.process.send_signal(signal.SIGKILL)
    one.process.wait()
    assert two()["mode"] == "DEGRADED"
    three = workers()
    assert three()["body"] == "off"
    assert three("pin MAINTENANCE 600")["status"] == 503
    assert two()["status"] == 503
    assert two("unpin") == {"status": 200, "body": "on", "mode": "FULL"}
    assert three() == {"status": 200, "body": "on", "mode": "FULL"}


def test_a_drain_acts_on_every_worker_and_outlives_its_maker(workers):
    one, two = workers(), workers()
    assert two("states") == {"a": "serving", "b": "serving"}
    one("drain a")
    assert one("states")["a"] == "drained"
    assert {two("call") for _ in range(12)} == {"b"}
    assert two("states")["a"] == "drained"
    one.process.kill()
    one.process.wait()
    three = workers()
    assert three("states") == {"a": "drained", "b": "serving"}
    three("drain b")
    three("restore a")
    assert two("states") == {"a": "serving", "b": "drained"}
    assert {two("call") for _ in range(12)} == {"a"}
