"""Several worker processes on one home: one split, one judge, one history, whoever leads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORKER = textwrap.dedent(
    """
    import asyncio, json, sys
    import attrs
    from deia_hardening import harden
    from deia_hardening.plugin import Problem
    from deia_hardening.settings import Ratio, Seconds
    from deia_hardening.testing import running
    from deia_migration import Guards, Limits, MigrationManager, Plan, Step

    failing = False

    def version(name):
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                while True:
                    message = await receive()
                    await send({"type": message["type"] + ".complete"})
                    if message["type"] == "lifespan.shutdown":
                        return
            status = 500 if failing and name == "new" else 200
            if scope["path"] == "/hold":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
                await released.wait()
                await send({"type": "http.response.body", "body": name.encode()})
                return
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})
        return app

    sys.modules["worker_versions"] = type(sys)("worker_versions")
    sys.modules["worker_versions"].new = version("new")
    hardened = harden(version("old"), {"home": sys.argv[1], "migration": {
        "versions": {"v2": {"target": "inproc:worker_versions:new"}},
        "mirror": {"routes": ["GET /read"]}, "key": ["header:x-user"], "tick": "20ms", "look": "20ms", "lease": "3s"}})
    plan = Plan(steps=(Step(weight=Ratio("20%"), gate="manual"),), promote="manual")

    async def main():
        global failing
        global released
        released = asyncio.Event()
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with running(hardened, {}) as live:
            manager = live.service(MigrationManager)
            print(json.dumps({"up": True}), flush=True)
            while line := await lines.readline():
                verb, *rest = line.decode().split()
                answer = {}
                try:
                    if verb == "start":
                        await manager.start("v2", plan=plan)
                    elif verb == "mirror":
                        await manager.start("v2", plan=attrs.evolve(plan, mirror=Seconds("60s")))
                    elif verb == "read":
                        for _ in range(int(rest[0])):
                            await live.get("/read")
                            await asyncio.sleep(0.005)
                    elif verb == "back":
                        await manager.start("app", plan=plan)
                    elif verb == "rollback":
                        await manager.rollback()
                    elif verb == "promote":
                        await manager.promote(full=True)
                    elif verb == "fail":
                        failing = True
                    elif verb == "hold":
                        held = asyncio.create_task(live.get("/hold", headers=[(b"x-user", rest[0].encode())]))
                        await asyncio.sleep(0.1)
                        answer = {"done": held.done()}
                    elif verb == "release":
                        released.set()
                        answer = {"body": (await held).body.decode()}
                    elif verb == "hit":
                        counts = {"old": 0, "new": 0}
                        for user in range(int(rest[0]), int(rest[1])):
                            got = await live.post("/", headers=[(b"x-user", str(user).encode())],
                                                  client=(f"10.{user // 250}.{user % 250}.1", 1))
                            counts[got.body.decode()] += 1
                            await asyncio.sleep(0)
                        answer = counts
                except Problem as problem:
                    answer = {"problem": problem.status, "detail": problem.detail}
                status = manager.status()
                answer |= {"weight": status.weight, "phase": status.phase, "driving": manager._engine.driving,
                           "latched": status.latched, "rollout": status.rollout, "verdict": status.verdict,
                           "reason": status.reason,
                           "told": status.requests.get("old", 0) + status.requests.get("new", 0)}
                print(json.dumps(answer), flush=True)

    asyncio.run(main())
    """
)


class Worker:
    def __init__(self, script: Path, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.read()["up"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> dict[str, Any]:
        self.send(line)
        return self.read()

    def until(self, key: str, value: Any) -> None:
        for _ in range(2_000):
            if self.ask("status")[key] == value:
                return
            signal.sigtimedwait([], 0.01)
        raise AssertionError(f"{key} never became {value}: {self.ask('status')}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    found: list[Worker] = []
    try:
        for _ in range(2):
            found.append(Worker(script, tmp_path / ".deia"))
        yield found
    finally:
        for worker in found:
            worker.end()


def leader(workers: list[Worker]) -> list[Worker]:
    """The one that drives, then the other; a lease may change hands on a machine that stalls."""
    for _ in range(2_000):
        driving = [worker.ask("status")["driving"] for worker in workers]
        if sum(driving) == 1:
            return workers if driving[0] else workers[::-1]
        signal.sigtimedwait([], 0.01)
    raise AssertionError("nobody drives, or both do")


@pytest.mark.fault
def test_two_workers_share_split_judge_and_rollback_and_one_replaces_the_other(workers: list[Worker]) -> None:
    one, two = workers
    one.ask("start")
    for worker in workers:
        worker.until("weight", 0.2)
    assert two.ask("start")["problem"] == 409
    first, second = one.ask("hit 0 200"), two.ask("hit 0 200")
    assert first["new"] == second["new"] > 10  # the same users in both
    leads, other = leader(workers)
    # The one that leads is killed: the other takes over at the same weight.
    os.kill(leads.process.pid, signal.SIGKILL)
    other.until("driving", True)
    assert other.ask("status")["weight"] == 0.2
    assert other.ask("promote")["weight"] == 1.0
    assert other.ask("hit 200 250")["new"] == 50


@pytest.mark.fault
def test_failures_that_only_a_follower_sees_are_judged_by_the_leader(workers: list[Worker]) -> None:
    workers[0].ask("start")
    for worker in workers:
        worker.until("weight", 0.2)
    leads, other = leader(workers)
    other.ask("fail")
    other.ask("hit 300 400")
    leads.until("latched", True)
    other.until("weight", 0.0)
    for worker in workers:
        assert worker.ask("hit 0 100")["new"] == 0
        worker.until("phase", "rolled-back")


@pytest.mark.fault
def test_mirrored_answers_count_whichever_worker_compared_them(workers: list[Worker]) -> None:
    workers[0].ask("mirror")
    for worker in workers:
        worker.until("phase", "mirroring")
    leads, other = leader(workers)
    other.ask("fail")  # its new version answers otherwise than its old one; nothing is asked of the one that leads
    for _ in range(40):
        if other.ask("read 20")["phase"] == "rolled-back":
            break
    leads.until("phase", "rolled-back")
    assert "status (" in leads.ask("status")["reason"]


@pytest.mark.fault
def test_a_worker_that_slept_through_a_whole_rollout_serves_what_it_came_to(workers: list[Worker]) -> None:
    one, two = workers
    for verb, serves in (("start", "new"), ("back", "old")):
        os.kill(two.process.pid, signal.SIGSTOP)
        try:
            one.ask(verb)
            one.until("weight", 0.2)
            one.ask("promote")
            one.until("phase", "done")
        finally:
            os.kill(two.process.pid, signal.SIGCONT)
        two.until("rollout", one.ask("status")["rollout"])
        two.until("phase", "done")
        for worker in workers:
            assert worker.ask("hit 0 50")[serves] == 50
        assert two.ask(verb)["problem"] == 409  # it serves already, and this worker knows


@pytest.mark.fault
def test_a_worker_that_slept_through_a_promotion_knows_what_serves(workers: list[Worker]) -> None:
    one = workers[0]
    for verb, serves in (("start", "new"), ("back", "old")):
        one.ask(verb)
        for worker in workers:
            worker.until("weight", 0.2)
        awake, asleep = leader(workers)
        os.kill(asleep.process.pid, signal.SIGSTOP)  # it takes part, but sees no step between 20% and the end
        try:
            awake.ask("promote")
            awake.until("phase", "done")
        finally:
            os.kill(asleep.process.pid, signal.SIGCONT)
        asleep.until("phase", "done")
        assert asleep.ask("hit 0 50")[serves] == 50
        assert asleep.ask(verb)["problem"] == 409  # it serves already, and this worker knows
    assert "problem" not in asleep.ask("start")


@pytest.mark.fault
def test_of_two_starts_at_the_same_moment_one_runs_and_the_other_is_told_so(workers: list[Worker]) -> None:
    for worker in workers:
        worker.send("start")
    answers = [worker.read() for worker in workers]
    assert sorted(answer.get("problem", 200) for answer in answers) == [200, 409]
    begun = next(answer["rollout"] for answer in answers if "problem" not in answer)
    for worker in workers:
        worker.until("weight", 0.2)
        assert worker.ask("status")["rollout"] == begun


@pytest.mark.fault
def test_whoever_is_asked_tells_what_the_leader_knows(workers: list[Worker]) -> None:
    workers[0].ask("start")
    for worker in workers:
        worker.until("weight", 0.2)
    for worker in workers:
        worker.ask("hit 0 30")
    for worker in workers:
        worker.until("told", 60)
        worker.until("verdict", "hold")


@pytest.mark.fault
@pytest.mark.parametrize("leaves", ["new", "old"])
def test_a_version_is_kept_for_a_stream_of_another_worker_until_it_ends(workers: list[Worker], leaves: str) -> None:
    workers[0].ask("start")
    for worker in workers:
        worker.until("weight", 0.2)
    leads, other = leader(workers)
    user = next(user for user in range(100) if other.ask(f"hit {user} {user + 1}")[leaves])
    assert not other.ask(f"hold {user}")["done"]
    ends = "rolled-back" if leaves == "new" else "done"
    leads.ask("rollback" if leaves == "new" else "promote")
    for _ in range(50):
        assert leads.ask("status")["phase"] != ends
    assert other.ask("release")["body"] == f"begun {leaves}"
    leads.until("phase", ends)
