"""Versions as processes that misbehave: they die in any phase, never get ready, flood, leak, break the protocol, hang.

Whatever they do, the old version serves throughout, nobody who may be asked twice hears of it, and the reason is told.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.settings import Ratio, Seconds
from deia_hardening.testing import ASGIRecorder
from deia_hardening.testing.asgi import http_scope
from deia_migration import Guards, Limits, MigrationManager, Plan, Probe, Step

pytestmark = [pytest.mark.blocking, pytest.mark.fault]

APP = """
import asyncio, os, sys, threading

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        STARTING
        await send({"type": "lifespan.startup.complete"})
        await receive()
        STOPPING
        await send({"type": "lifespan.shutdown.complete"})
        return
    ANSWERING
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"second {os.getpid()}".encode()})
"""


def project(folder: Path, *, starting: str = "pass", stopping: str = "pass", answering: str = "pass") -> str:
    """A folder with a version that does this."""
    folder.mkdir()
    source = APP.replace("STARTING", starting).replace("STOPPING", stopping).replace("ANSWERING", answering)
    (folder / "main.py").write_text(source)
    return str(folder)


def plan(**more: Any) -> Plan:
    steps = (Step(weight=Ratio("50%"), gate="manual"),)
    given: dict[str, Any] = {
        "steps": steps, "promote": "manual", "guards": Guards(every=Seconds("50ms")),
        "limits": Limits(start=Seconds("20s"), tests=Seconds("20s"), drain=Seconds("1s")), **more,
    }  # fmt: skip
    return Plan(**given)


async def get(live: Any, path: str, user: int) -> ASGIRecorder:
    """One user's GET, with a client who stays for the answer."""
    scope = http_scope("GET", path, headers=[(b"x-user", str(user).encode())], client=(f"10.{user}.0.1", 1))
    asked = {"type": "http.request", "body": b"", "more_body": False}
    return await ASGIRecorder(live.app, scope, asked, hang=True).run()


async def everybody(live: Any, number: int = 30) -> set[str]:
    """What users get who ask by GET: never anything but a whole answer."""
    found = set()
    for user in range(number):
        answer = await get(live, "/", user)
        assert answer.status == 200
        found.add(answer.body.decode().split()[0])
    return found


def child(manager: MigrationManager) -> int:
    """The process of the version that is not the app."""
    (pid,) = (host.upstream.pid for host in manager._engine.hosts.values())  # type: ignore[attr-defined]
    assert pid
    return int(pid)


@pytest.mark.parametrize("phase", ["testing", "ramping", "baking", "promoted", "rolling-back"])
async def test_a_death_in_any_phase_leaves_the_old_version_serving(
    pair: Any, until: Any, tmp_path: Path, phase: str
) -> None:
    hang = "await asyncio.sleep(60 if scope['path'] == '/slow' else 0)"
    source = project(tmp_path / "second", answering=hang)
    probes = (Probe(path="/slow", within=Seconds("60s")),) if phase == "testing" else ()
    limits = Limits(start=Seconds("20s"), tests=Seconds("60s"), drain=Seconds("60s"))
    over = asyncio.Event()

    async def old(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"old"})

    pair.old.behaviour = old
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        on_old = asyncio.create_task(get(live, "/slow", 1))  # it holds the old version in its promotion
        await until(lambda: manager.status().versions[0].in_flight)
        await manager.deploy(source, plan=plan(probes=probes, limits=limits, bake=Seconds("1h")))
        if phase != "testing":
            await until(lambda: manager.status().weight == 0.5)
        if phase not in ("testing", "ramping"):
            await manager.promote(full=phase in ("promoted", "rolling-back"))
        if phase == "rolling-back":
            await until(lambda: manager.status().weight == 1)
            on_new = asyncio.create_task(get(live, "/slow", 2))  # and this one the new version in its rollback
            await until(lambda: manager.status().versions[1].in_flight)
            await manager.rollback()
        await until(lambda: manager.status().phase == phase)
        os.kill(child(manager), signal.SIGKILL)
        assert await everybody(live) <= {"old", "second"}
        over.set()
        await until(lambda: manager.status().phase == "rolled-back")
        assert manager.status().reason  # it ended, its probe got no answer, or the judge was quicker
        if phase == "rolling-back":
            assert (await on_new).body == b"old"  # the shield
        assert await everybody(live) == {"old"}
        assert (await on_old).body == b"old"


@pytest.mark.parametrize("how", ["hangs at its start", "dies at its start", "listens to nobody"])
async def test_a_version_that_never_gets_ready_gets_nothing(pair: Any, until: Any, tmp_path: Path, how: str) -> None:
    starting = {"hangs at its start": "await asyncio.sleep(600)", "dies at its start": "os._exit(3)"}.get(how, "pass")
    source = project(tmp_path / "second", starting=starting)
    nowhere = {"v9": {"target": "http://127.0.0.1:9"}}
    async with pair.up(versions=nowhere) as live:
        manager: MigrationManager = live.service(MigrationManager)
        slow = plan(limits=Limits(start=Seconds("2s")))
        if how == "listens to nobody":
            await manager.start("v9", plan=slow)
        else:
            await manager.deploy(source, plan=slow)
        assert await everybody(live) == {"old"}
        await until(lambda: manager.status().latched)
        assert ("exit status 3" if how == "dies at its start" else "was not ready within 2s") in manager.status().reason
        assert await everybody(live) == {"old"}
        await until(lambda: manager.status().phase == "rolled-back")


NONSENSE = {
    "a body before any start": "await send({'type': 'http.response.body', 'body': b'x'})",
    "another kind of message": "await send({'type': 'http.response.stop'})",
    "a status that is none": "await send({'type': 'http.response.start', 'status': 'well', 'headers': []})",
    "a header that is none": "await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'a b', b'x')]})",
    "no answer at all": "return",
    "an error": "raise RuntimeError('no such table')",
    "its own end": "os._exit(1)",
}


@pytest.mark.parametrize("what", sorted(NONSENSE))
async def test_a_version_that_breaks_the_protocol_is_condemned(
    pair: Any, until: Any, tmp_path: Path, what: str
) -> None:
    source = project(tmp_path / "second", answering=NONSENSE[what])
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(source, plan=plan())
        await until(lambda: manager.status().weight == 0.5 or manager.status().latched)
        assert await everybody(live, 60) == {"old"}
        await until(lambda: manager.status().latched, "the rollback")
        assert manager.status().reason


async def test_a_version_that_floods_its_output_is_read_and_serves(pair: Any, until: Any, tmp_path: Path) -> None:
    flood = "threading.Thread(target=lambda: [print('x' * 100_000) for _ in iter(int, 1)], daemon=True).start()"
    source = project(tmp_path / "second", starting=flood)
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(source, plan=plan())
        await until(lambda: manager.status().weight == 0.5)
        assert await everybody(live) == {"old", "second"}
        await manager.rollback()
        await until(lambda: manager.status().phase == "rolled-back")


async def test_a_version_that_takes_all_memory_dies_of_it_alone(pair: Any, until: Any, tmp_path: Path) -> None:
    starting = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    leak = "kept = globals().setdefault('kept', []); kept.append(bytearray(100 << 20))"
    source = project(tmp_path / "second", starting=starting, answering=leak)
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(source, plan=plan())
        await until(lambda: manager.status().weight == 0.5)
        assert await everybody(live, 120) <= {"old", "second"}
        await until(lambda: manager.status().latched, "the rollback")


async def test_a_version_that_will_not_stop_is_ended(pair: Any, until: Any, tmp_path: Path) -> None:
    source = project(tmp_path / "second", stopping="await asyncio.sleep(600)")
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.deploy(source, plan=plan())
        await until(lambda: manager.status().weight == 0.5)
        pid = child(manager)
        await manager.rollback()
        await until(lambda: manager.status().phase == "rolled-back")
        assert await everybody(live) == {"old"}
        await until(lambda: not Path(f"/proc/{pid}").exists(), "the process to be gone")
