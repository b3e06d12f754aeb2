"""The command line with no service up: what is listed, proven and restored from the files alone."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.context import SYSTEM
from deia_hardening.operations import Call
from deia_hardening.surface import Surface
from deia_hardening.testing import running
from deia_recovery import Registry, TaskQueue

numbers: Registry[int] = Registry("numbers", int)
jobs: TaskQueue[int] = TaskQueue("jobs", int)


async def app(scope: Any, receive: Any, send: Any) -> None:
    return None


def settings(home: Path, **more: Any) -> dict[str, Any]:
    return {
        "home": str(home),
        "recovery": {"reserve": "0", "idle": "200ms", "ship_every": "100ms", "snapshots": [], **more},
    }


async def invoke(up: Any, name: str, **given: Any) -> Any:
    surface = up.core.services.get(Surface)
    last = None
    async for item in surface.invoke(name, surface.operations()[name].input(**given), Call(SYSTEM)):
        last = item
    return last


def run(home: Path, *argv: str, ok: bool = True, **more: Any) -> Any:
    config = home / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "hardening.json").write_text(json.dumps(settings(home, **more)))
    found = subprocess.run(
        [sys.executable, "-m", "deia_hardening.cli", "recovery", *argv, "--config", str(config), "--json"],
        capture_output=True, text=True, timeout=60, check=False, cwd=home.parent, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert (found.returncode == 0) is ok, found.stdout + found.stderr
    return json.loads(found.stdout) if ok else found.stdout + found.stderr


async def lived(home: Path) -> dict[str, int]:
    """A home that has lived: two snapshots' worth of numbers and one task."""
    async with running(app, settings(home)) as up:
        await numbers.put("a", 1)
        await jobs.submit(7)
        await invoke(up, "recovery.take")
        await numbers.put("b", 2)
        await invoke(up, "recovery.take", what=("registry",))
        await numbers.put("c", 3)
        return dict(await numbers.items())


async def test_the_state_itself_is_proven_with_no_service_up(home: Path) -> None:
    await lived(home)
    assert run(home, "scrub") == {"result": {"problems": []}, "ok": True}
    status = run(home, "status")["result"]
    assert (status["generation"], status["position"]) == (1, None)
    assert status["scrubbed"]
    database = home / "state" / "recovery" / "g000001" / "state.db"
    content = bytearray(database.read_bytes())
    log = database.with_name("state.db-wal").read_bytes()
    size = int.from_bytes(content[16:18])
    held = {int.from_bytes(log[at : at + 4]) for at in range(32, len(log), 24 + size)}
    page = max(set(range(1, len(content) // size + 1)) - held)  # of the others the log has what counts
    content[page * size - 100] ^= 1
    database.write_bytes(content)
    assert "state.db page " in run(home, "scrub", ok=False)


async def state_of(home: Path, **more: Any) -> tuple[dict[str, int], Any]:
    async with running(app, settings(home, **more)) as up:
        found = dict(await numbers.items())
        return found, (await invoke(up, "recovery.status")).result


@pytest.mark.blocking
async def test_listing_and_proving_need_no_service_and_open_no_state(home: Path) -> None:
    await lived(home)
    database = next((home / "state" / "recovery").glob("g*/state.db"))
    before = database.read_bytes()
    marker = (home / "state" / "recovery" / "run.json").read_bytes()
    found = run(home, "list")["snapshots"]
    assert [one["what"] for one in found] == [["registry"], ["all"]]
    assert run(home, "verify")["ok"]
    assert run(home, "rehearse")["result"]["rows"]["registry"] >= 1
    status = run(home, "status")["result"]
    assert status["snapshots"] == 2
    assert status["proven_restore"]
    assert database.read_bytes() == before
    assert (home / "state" / "recovery" / "run.json").read_bytes() == marker, "what the last run left is not touched"


@pytest.mark.blocking
async def test_a_state_that_is_gone_is_restored_as_asked_for(home: Path) -> None:
    await lived(home)
    whole = run(home, "list")["snapshots"][1]["id"]
    shutil.rmtree(home / "state" / "recovery")
    assert run(home, "restore", "--dry-run", "--yes")["result"]["dry_run"]
    assert not list((home / "state" / "recovery").glob("g*")), "a dry run makes nothing"
    run(home, "restore", "--snapshot", whole, "--yes")
    found, status = await state_of(home)
    assert found == {"a": 1, "b": 2, "c": 3}, "a snapshot, and what was shipped after it"
    assert status["generation"] == 2


@pytest.mark.blocking
async def test_a_damaged_state_that_is_not_restored_by_itself_is_restored_on_the_command_line(home: Path) -> None:
    expected = await lived(home)
    database = next((home / "state" / "recovery").glob("g*/state.db"))
    data = bytearray(database.read_bytes())
    data[5000] ^= 1
    database.write_bytes(data)
    from deia_hardening.errors import HardeningError

    with pytest.raises(HardeningError, match="recovery restore"):
        await state_of(home, restore="never")
    run(home, "restore", "--yes", restore="never")
    found, _ = await state_of(home, restore="never")
    assert found == expected
    assert database.read_bytes() == bytes(data), "what is damaged is kept as it is"


@pytest.mark.blocking
async def test_a_good_state_goes_back_in_time_and_forward_again(home: Path) -> None:
    await lived(home)
    path = home / "logs" / "disaster-recovery.jsonl"
    at = next(one["at"] for one in run(home, "list")["snapshots"] if one["what"] == ["registry"])
    moment = dt.datetime.now(dt.UTC).isoformat()
    run(home, "restore", "--at", at, "--yes")
    found, _ = await state_of(home)
    assert found == {"a": 1, "b": 2}
    async with running(app, settings(home)):
        await numbers.put("d", 4)
    run(home, "restore", "--at", moment, "--yes")
    found, _ = await state_of(home)
    assert found == {"a": 1, "b": 2, "c": 3}, "as it was then, though that past was left"
    run(home, "restore", "--at", at, "--yes")
    shutil.rmtree(home / "state" / "recovery")
    found, _ = await state_of(home)
    assert found == {"a": 1, "b": 2}, "what was chosen last is what a lost state comes back as"
    assert any(json.loads(line).get("kind") == "recovery.restored" for line in path.read_text().splitlines())


@pytest.mark.blocking
async def test_a_past_that_was_left_is_not_what_a_lost_state_comes_back_as(home: Path) -> None:
    """Also where the last way back has no snapshot of its own yet: the one before it has, and is newer than all."""
    async with running(app, settings(home)) as up:
        await numbers.put("a", 1)
        await invoke(up, "recovery.take")
        first = (await invoke(up, "recovery.list")).snapshots[0]["at"]
        await numbers.put("b", 2)
    moment = dt.datetime.now(dt.UTC).isoformat()
    run(home, "restore", "--at", first, "--yes")
    async with running(app, settings(home)) as up:
        assert dict(await numbers.items()) == {"a": 1}
        await numbers.put("c", 3)
        await invoke(up, "recovery.take")
    left = {path.name for path in home.glob("backups/*/snapshots/*")}
    run(home, "restore", "--at", moment, "--yes")
    for path in home.glob("backups/*/snapshots/*"):
        if path.name not in left:
            path.unlink()  # killed before its snapshot was taken
    shutil.rmtree(home / "state" / "recovery")
    async with running(app, settings(home)) as up:
        assert dict(await numbers.items()) == {"a": 1, "b": 2}
        assert (await invoke(up, "recovery.status")).result["generation"] == 4
        await numbers.put("d", 4)
    shutil.rmtree(home / "state" / "recovery")
    found, status = await state_of(home)
    assert (found, status["generation"]) == ({"a": 1, "b": 2, "d": 4}, 5)


@pytest.mark.blocking
async def test_parts_are_brought_back_into_the_present_state(home: Path) -> None:
    async with running(app, settings(home)) as up:
        await numbers.put("a", 1)
        await numbers.put("gone", 9)
        taken = await invoke(up, "recovery.take", what=("registry",))
        await numbers.put("a", 5)
        await numbers.put("later", 4)
        await numbers.delete("gone")
        revision = (await numbers.entry("a")).revision
        task = await jobs.submit(1)
        claimed = await jobs.claim("w")
        report = await invoke(
            up, "recovery.restore", what=("registry",), snapshot=taken.result["id"], at="", dry_run=True
        )
        assert report.result["dry_run"]
        assert await numbers.get("a") == 5
    moment = taken.result["id"]
    async with running(app, settings(home)) as up:
        # all that was shipped leads back to the present; the snapshot's own moment is asked for by time
        at = next(one["at"] for one in (await invoke(up, "recovery.list")).snapshots if one["id"] == moment)
        report = await invoke(up, "recovery.restore", what=("registry",), snapshot=moment, at=at)
        assert report.result["changed"]["registry"] == 3
        assert dict(await numbers.items()) == {"a": 1, "gone": 9}
        assert (await numbers.entry("a")).revision > revision, "a revision is never used twice"
        assert (await jobs.get(task.id)).state in ("leased", "ready")
        assert claimed is not None
        assert (await invoke(up, "recovery.status")).result["generation"] == 1


@pytest.mark.blocking
async def test_what_can_not_be_done_says_what_to_do(home: Path) -> None:
    assert "no backups" in run(home, "list", ok=False)
    assert "no backups" in run(home, "restore", "--yes", ok=False)
    await lived(home)
    assert "bogus" in run(home, "take", "--what", "bogus", ok=False)
    assert "bogus" in run(home, "restore", "--what", "bogus", "--yes", ok=False)
    (home / "keys" / "recovery.key").unlink()
    assert "key" in run(home, "verify", ok=False)
