"""kill -9 at each step of a restore: what was acknowledged is there afterwards, whether it is begun again or not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.testing import running
from deia_recovery import Registry
from deia_recovery.service import DisasterRecovery

numbers: Registry[int] = Registry("numbers", int)

STEPS = (
    "deia_recovery.backup.restoring.build",
    "deia_recovery.engine.generation.write_whole",
    "deia_recovery.backup.restoring.set_current",
    "deia_recovery.backup.restore.Catalog.write_fork",
    "deia_recovery.backup.restoring.restore_files",
    "deia_recovery.backups.Backups.take",
)
ALWAYS = {("set_current", "before"), ("write_fork", "before"), ("write_fork", "after")}
"""What CI tries; the others are the campaign's."""

MOMENTS = [
    pytest.param(
        step,
        when,
        id=f"{when} {(name := step.rpartition('.')[2])}",
        marks=[] if (name, when) in ALWAYS else [pytest.mark.slow],
    )
    for step in STEPS
    for when in ("before", "after")
]

CHILD = textwrap.dedent(
    """
    import asyncio, importlib, os, signal, sys
    from deia_hardening.testing import running
    from deia_recovery import Registry
    from deia_recovery.backup.reinstating import Asked
    from deia_recovery.service import DisasterRecovery

    home, step, when, until = sys.argv[1:5]
    numbers = Registry("numbers", int)
    async def app(scope, receive, send): ...

    def die(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def arm():
        owner, _, name = step.rpartition(".")
        try:
            place = importlib.import_module(owner)
        except ModuleNotFoundError:
            module, _, kind = owner.rpartition(".")
            place = getattr(importlib.import_module(module), kind)
        real = getattr(place, name)
        def then_die(*args, **kwargs):
            real(*args, **kwargs)
            die()
        setattr(place, name, die if when == "before" else then_die)

    async def main():
        if not until:
            arm()
        settings = {"home": home, "recovery": {"reserve": "0", "snapshots": [], "ship_every": "1h"}}
        async with running(app, settings) as up:
            if until:
                arm()
                recovery = up.service(DisasterRecovery)
                await recovery.host.blocking(recovery.backups.restore_now, Asked(until=float(until)))
    asyncio.run(main())
    """
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    return None


def settings(home: Path, **more: Any) -> dict[str, Any]:
    return {"home": str(home), "recovery": {"reserve": "0", "snapshots": [], "ship_every": "1h", **more}}


def killed(home: Path, step: str, when: str, until: str = "") -> bool:
    """Run a restore that dies at `step`; whether it got there."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(home), step, when, until], capture_output=True, text=True, check=False
    )
    assert child.returncode in (0, -signal.SIGKILL), child.stderr
    return child.returncode != 0


async def prepared(home: Path) -> float:
    """A state with a snapshot of {a}, then {a, b}, then (not yet shipped when it ended) {a, b, c}; between b and c."""
    async with running(app, settings(home)) as up:
        recovery = up.service(DisasterRecovery)
        await numbers.put("a", 1)
        await recovery.host.blocking(recovery.backups.take)
        await numbers.put("b", 2)
        entries = await recovery.engine.read(lambda c: c.execute("SELECT max(at) FROM changes").fetchone()[0])
        while recovery.host.clock.wall() * 1000 <= entries + 1:
            pass
        at = recovery.host.clock.wall()
        while recovery.host.clock.wall() <= at + 0.002:
            pass
        await numbers.put("c", 3)
    return at


@pytest.mark.blocking
@pytest.mark.parametrize(("step", "when"), MOMENTS[:-2])
async def test_a_restore_at_start_that_was_killed_is_made_by_the_next(home: Path, step: str, when: str) -> None:
    await prepared(home)
    database = home / "state" / "recovery" / "g000001" / "state.db"
    data = bytearray(database.read_bytes())
    data[4096 + 100] ^= 1
    database.write_bytes(data)
    assert killed(home, step, when)
    async with running(app, settings(home)) as up:
        assert dict(await numbers.items()) == {"a": 1, "b": 2, "c": 3}
        await numbers.put("d", 4)
        assert up is not None
    assert database.read_bytes() == data, "nothing damaged is changed"
    shutil.rmtree(home / "state" / "recovery")
    async with running(app, settings(home)):
        assert dict(await numbers.items()) == {"a": 1, "b": 2, "c": 3, "d": 4}


@pytest.mark.blocking
@pytest.mark.parametrize(("step", "when"), MOMENTS)
async def test_a_restore_while_serving_that_was_killed_is_done_or_not_done(home: Path, step: str, when: str) -> None:
    at = await prepared(home)
    assert killed(home, step, when, str(at))
    async with running(app, settings(home)) as up:
        found = dict(await numbers.items())
        assert found in ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3})
        await numbers.put("d", 4)
        number = up.service(DisasterRecovery).generation.number
    assert (number == 1) is ("c" in found)
    # the machine is lost: the backups alone lead to what was in force, not to what a killed restore meant to be
    shutil.rmtree(home / "state" / "recovery")
    async with running(app, settings(home)):
        assert dict(await numbers.items()) == {**found, "d": 4}
