"""After a crash anywhere: at or below the journaled weight, an unfinished rollback finished, the log whole."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening.journal import JournalReader, open_journal
from deia_hardening.settings import Ratio
from deia_migration import MigrationManager, Plan, Step
from deia_migration.book import Book, merged
from deia_migration.engine import Engine
from deia_migration.log import Recovered, record, records, recover, started_fields
from deia_migration.rollout import Phase, Rollout

STEPS = Plan(steps=tuple(Step(weight=Ratio(f"{weight}%"), gate="manual") for weight in (5, 20, 60)), promote="manual")


async def whole_log(pair: Any, until: Any, *, end: str) -> bytes:
    """Run one rollout to its end and return what it wrote."""
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=STEPS)
        for weight in (0.05, 0.2, 0.6):
            await until(lambda weight=weight: manager.status().weight == weight)
            if weight < 0.6:
                await manager.promote()
        if end == "promoted":
            await manager.promote(full=True)
        else:
            await manager.rollback(reason="by hand")
        await until(lambda: manager.status().phase in ("done", "rolled-back"))
    return bytes((pair.folder / ".deia" / "logs" / "migration-log.jsonl").read_bytes())


def boundaries(log: bytes) -> list[int]:
    return [at + 1 for at, byte in enumerate(log) if byte == 10]


def told(log: bytes) -> tuple[float, list[str]]:
    """The greatest weight that is in force by the whole lines of a log, and its events."""
    weight, events = 0.0, []
    for line in log.split(b"\n")[:-1]:
        record = json.loads(line)
        if record.get("kind") == "migration":
            weight = record["weight"]
            events.append(record["event"])
    return weight, events


@pytest.mark.blocking
@pytest.mark.parametrize("end", ["promoted", "rollback"])
async def test_a_log_cut_anywhere_is_folded_to_what_its_whole_lines_say(
    pair: Any, until: Any, tmp_path: Path, end: str
) -> None:
    log = await whole_log(pair, until, end=end)
    path = tmp_path / "cut" / "migration-log.jsonl"
    path.parent.mkdir()
    chooser = random.Random(5)
    marks = boundaries(log)
    for index, mark in enumerate(marks):
        following = marks[index + 1] if index + 1 < len(marks) else mark
        for torn in {mark, *(chooser.randrange(mark, following) for _ in range(3) if following > mark)}:
            path.write_bytes(log[:torn])
            weight, events = told(log[:torn])
            found = recover(path).rollout
            assert (found is None) == (not events)
            if found is not None:
                assert found.weight == weight
                assert found.latched == ("rollback" in events)


@pytest.mark.blocking
@pytest.mark.parametrize("end", ["promoted", "rollback"])
async def test_killed_at_every_record_it_goes_on_at_or_below_the_journaled_weight(
    pair: Any, until: Any, tmp_path: Path, end: str
) -> None:
    log = await whole_log(pair, until, end=end)
    chooser = random.Random(7)
    marks = boundaries(log)
    cuts = list(marks[2:])  # at every record's end, and once within every record
    cuts += [chooser.randrange(mark + 1, following) for mark, following in itertools.pairwise(marks[2:])]
    for tear in cuts:
        pair.folder = tmp_path / f"cut-{tear}"  # a home of its own, as a new process sees it
        home = pair.folder / ".deia"
        (home / "logs").mkdir(parents=True)
        (home / "logs" / "migration-log.jsonl").write_bytes(log[:tear])
        weight, events = told(log[:tear])
        async with pair.up() as live:
            manager: MigrationManager = live.service(MigrationManager)
            now = manager.status()  # where a gate was open it may have gone on meanwhile: what it raised is journaled
            assert now.weight <= told((home / "logs" / "migration-log.jsonl").read_bytes())[0] or now.phase == "done"
            if "rollback" in events:
                await until(lambda manager=manager: manager.status().phase == "rolled-back", "the rollback to finish")
                assert manager.status().weight == 0
            elif "promoted" in events:
                await until(lambda manager=manager: manager.status().phase == "done")
                assert (await live.post("/")).body == b"new"
            elif events:
                await until(lambda manager=manager: manager.status().weight >= min(weight, 0.05), "it goes on")
                await asyncio.sleep(0.03)
                if events[-1] != "gate":  # else it goes on to the step that the gate was for
                    assert manager.status().weight <= max(weight, 0.05)
                await manager.rollback(cut=True)
                await until(lambda manager=manager: manager.status().phase == "rolled-back")
        assert JournalReader(home / "logs" / "migration-log.jsonl").verify().ok


@pytest.mark.blocking
async def test_a_weight_that_only_the_store_knows_is_not_taken_up(pair: Any, until: Any) -> None:
    log = await whole_log(pair, until, end="promoted")
    marks = boundaries(log)
    third = next(mark for mark in marks if told(log[:mark])[0] == 0.05)
    # The store says promoted, the log says 5%.
    old = pair.folder / ".deia"
    pair.folder = pair.folder / "again"
    shutil.copytree(old, pair.folder / ".deia", ignore=shutil.ignore_patterns("*.sock", "*.dgram"))
    (pair.folder / ".deia" / "logs" / "migration-log.jsonl").write_bytes(log[:third])
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        assert manager.status().weight <= 0.05


def begun(name: str, at: float) -> tuple[Rollout, dict[str, Any]]:
    state = Rollout(id=f"rollout-of-{name}", plan=STEPS, candidate=name, target="unix:/x", started=at, since=at)
    return state, record(state, "started", at, fields=started_fields(state))


@pytest.mark.blocking
def test_a_start_that_the_store_refused_does_not_hide_the_rollout_that_runs(tmp_path: Path) -> None:
    first, started = begun("v2", 1.0)
    second, refused = begun("v3", 2.0)  # of another worker, at the same moment: both write, one is let on
    later = [record(first, event, 3.0) for event in ("ready", "tested", "mirrored", "promoted")]

    def told(*entries: dict[str, Any]) -> Recovered:
        path = tmp_path / f"{len(entries)}" / "migration-log.jsonl"
        journal = open_journal(path)
        for entry in entries:
            journal.append(entry)
        journal.close()
        return recover(path)

    found = told(started, refused)
    assert found.rollout is not None and found.rollout.id == second.id
    assert found.of(first) == first  # the store says which
    assert found.of(None) == second
    found = told(started, refused, *later)
    assert found.rollout is not None
    assert (found.rollout.id, found.rollout.phase, found.base.name) == (first.id, Phase.PROMOTED, "v2")
    # One that is over stays so: the next rollout is the last one.
    over = record(first, "retired", 4.0)
    found = told(started, *later, over, refused)
    assert found.rollout is not None and found.rollout.id == second.id
    assert found.base.name == "v2"


CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from deia_hardening import harden
    from deia_hardening.settings import Ratio, Seconds
    from deia_hardening.testing import running
    from deia_migration import MigrationManager, Plan, Step, Limits

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    sys.modules["kill_versions"] = type(sys)("kill_versions")
    sys.modules["kill_versions"].v2 = app
    hardened = harden(app, {"home": sys.argv[1], "migration": {
        "versions": {"v2": {"target": "inproc:kill_versions:v2"}}, "tick": "10ms", "lease": "1s"}})
    plan = Plan(steps=tuple(Step(weight=Ratio(f"{w}%"), pause=Seconds("20ms")) for w in range(5, 100, 5)),
                promote="manual", holdback=Ratio("0%"), limits=Limits(drain=Seconds("0s")))

    async def main():
        async with running(hardened, {}) as live:
            manager = live.service(MigrationManager)
            print("up", manager.status().weight, manager.status().latched, manager.status().phase, flush=True)
            for _ in range(100):
                if manager.status().phase in ("none", "done", "rolled-back"):
                    await manager.start("v2", plan=plan)
                await asyncio.sleep(0.25)
                if manager.status().weight > 0.4:
                    await manager.rollback()
                    print("rolled back", flush=True)

    asyncio.run(main())
    """
)


def kills(home: Path, number: int, seed: int) -> None:
    """Kill a process that rolls out and back, again and again; look at each new start."""
    print(f"seed {seed}")
    chooser = random.Random(seed)
    script = home.parent / "child.py"
    script.write_text(CHILD)
    for _ in range(number):
        before = _ceiling(home)
        process = subprocess.Popen([sys.executable, str(script), str(home)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            first = process.stdout.readline().split()
            assert first[:1] == ["up"], first
            assert float(first[1]) <= before, (first, before)
            signal.sigtimedwait([], chooser.random() * 1.2)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _ceiling(home: Path) -> float:
    weight = 0.0
    for _, event in records(home / "logs" / "migration-log.jsonl"):
        weight = event["weight"]
    return weight


@pytest.mark.fault
def test_kill_9_at_random_instants_resumes_at_or_below_the_journaled_weight(tmp_path: Path) -> None:
    kills(tmp_path / ".deia", 3, seed=11)


@pytest.mark.slow
@pytest.mark.fault
def test_a_hundred_kills(tmp_path: Path) -> None:
    kills(tmp_path / ".deia", 100, seed=12)


@pytest.mark.blocking
async def test_an_end_that_comes_while_a_worker_starts_is_taken_up(
    pair: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new worker is asked before it has read where the rollout stands, and another one ends it meanwhile."""
    log = await whole_log(pair, until, end="promoted")
    marks = boundaries(log)
    third = next(mark for mark in marks if told(log[:mark])[0] == 0.05)
    pair.folder = pair.folder / "again"
    (pair.folder / ".deia" / "logs").mkdir(parents=True)
    (pair.folder / ".deia" / "logs" / "migration-log.jsonl").write_bytes(log[:third])
    serve_by = Engine._serve_by
    ended: list[Rollout] = []

    async def while_it_ends(engine: Engine, base: Any) -> Any:
        if not ended:
            assert engine.rollout is not None
            ended.append(attrs.evolve(engine.rollout, phase=Phase.DONE, weight=1.0))
            other = Book(engine.host)
            await other.read()
            await other.store(ended[0])
            engine.host.runtime.submit(engine.catch_up)  # what who asks for the status does
            await asyncio.sleep(0.1)
        return await serve_by(engine, base)

    monkeypatch.setattr(Engine, "_serve_by", while_it_ends)
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await until(lambda: manager.status().phase == "done")
        await until(lambda: [one.name for one in manager.status().versions] == ["v2"])
        for user in range(20):
            assert (await live.post("/", headers=[(b"x-user", str(user).encode())])).body == b"new"


def test_an_end_that_only_the_store_knows_yet_is_the_end() -> None:
    state, _ = begun("v2", 1.0)
    promoted = attrs.evolve(state, phase=Phase.PROMOTED, weight=1.0)
    done = attrs.evolve(promoted, phase=Phase.DONE)
    assert merged(promoted, done) == done
    assert (
        merged(attrs.evolve(state, phase=Phase.RAMPING, weight=0.05), done) != done
    )  # the log is the truth on weights
    leaving = attrs.evolve(state, phase=Phase.ROLLING_BACK, latched=True)
    back = attrs.evolve(leaving, phase=Phase.ROLLED_BACK)
    assert merged(leaving, back) == back
