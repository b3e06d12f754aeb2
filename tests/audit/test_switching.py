"""What weakens the trail, reads it or floods it leaves a record of its own, while the service runs."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from deia_audit import AuditLogger
from deia_audit.layout import Layout
from deia_audit.operation_types import ProveInput, QueryInput
from deia_audit.verify import verify
from deia_hardening import harden
from deia_hardening.context import Actor
from deia_hardening.journal import JournalReader
from deia_hardening.plugin import Call
from deia_hardening.runtime import runtime
from deia_hardening.surface import ReloadInput, Surface
from deia_hardening.testing import running

Read = Callable[[Path], list[dict[str, Any]]]
ROOT = Call(Actor("user", "root", auth="uid:0"), reason="a look", local=True)


async def test_a_flood_is_summed_up_while_it_goes_on(tmp_path: Path, read_trail: Read) -> None:
    audit = {"flood_burst": 2, "flood_rate": 0.1, "flood_summary": "1s"}
    async with running(Starlette(), {"home": str(tmp_path), "audit": audit}) as live:
        for _ in range(10):
            assert (await live.get("/missing")).status == 404
        logger = live.service(AuditLogger)
        while logger.flood.counts:  # the background loop writes the summary
            await asyncio.sleep(0.02)
    records = read_trail(tmp_path)
    actions = [one.get("action") for one in records]
    assert actions.index("audit.refusals-summed") < actions.index("audit.stopped")
    (summary,) = [one for one in records if one.get("action") == "audit.refusals-summed"]
    assert summary["count"] == 8
    assert actions.count("GET (unmatched)") == 2


async def test_reads_by_the_local_socket_are_recorded_with_who_read(tmp_path: Path, read_trail: Read) -> None:
    async with running(Starlette(), {"home": str(tmp_path), "audit": {}}) as live:
        surface = live.service(Surface)

        async def invoke(name: str, value: Any) -> None:
            async for _ in surface.invoke(name, value, ROOT):
                pass

        await live.get("/missing")
        for name, value in (("audit.query", QueryInput("status=404")), ("audit.prove", ProveInput(0))):
            await runtime().run(invoke, name, value)
    reads = [one for one in read_trail(tmp_path) if one.get("action") == "audit.read"]
    assert [(one["actor"]["id"], one["detail"]["by"]) for one in reads] == [("root", "query"), ("root", "prove")]


@pytest.mark.blocking  # writes the settings itself
async def test_turning_the_plugin_off_is_the_trails_last_word(tmp_path: Path, read_trail: Read) -> None:
    config = tmp_path / ".deia" / "config"
    config.mkdir(parents=True)
    settings = config / "hardening.yaml"
    settings.write_text("audit:\n")
    async with running(Starlette(), config) as live:
        await live.get("/missing")
        settings.write_text("audit:\n  enabled: false\n")
        surface = live.service(Surface)

        async def reload() -> None:
            async for _ in surface.invoke("service.reload", ReloadInput(), ROOT):
                pass

        await runtime().run(reload)
        await live.get("/missing")
    actions = [one.get("action") for one in read_trail(tmp_path / ".deia")]
    assert "audit.switched-off" in actions
    assert "audit.stopped" not in actions
    assert actions.count("GET (unmatched)") == 1


def test_an_app_that_is_dropped_ends_its_trail_without_a_complaint(
    tmp_path: Path, read_trail: Read, caplog: pytest.LogCaptureFixture
) -> None:
    app = harden(Starlette(), {"home": str(tmp_path), "audit": {}})
    TestClient(app).get("/missing")
    del app
    deadline = time.monotonic() + 30
    while "audit.stopped" not in [one.get("action") for one in read_trail(tmp_path)]:
        gc.collect()
        assert time.monotonic() < deadline, "the trail was not ended"
        time.sleep(0.05)
    assert "ended by itself" not in caplog.text


@pytest.mark.blocking  # verifies the trail itself
async def test_a_stop_that_runs_out_of_its_time_still_makes_the_last_checkpoint(tmp_path: Path) -> None:
    audit = {"checkpoint_interval": "1m"}  # no tick comes first
    settings = {"home": str(tmp_path), "audit": audit, "requests": {"stop_timeout": "100ms"}}
    async with running(Starlette(), settings) as live:
        logger = live.service(AuditLogger)
        await live.get("/missing")
        role = logger.journal._writer.role
        assert await asyncio.to_thread(role.acquire, timeout=30)  # another thread writes, to a disk that stalls
    role.release()
    layout = Layout.of(tmp_path)
    deadline = time.monotonic() + 30
    while not (report := verify(layout)).records or report.signed != report.records:
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.02)
    last = JournalReader(layout.log).last()
    assert last is not None
    assert last.event()["action"] == "audit.stopped"
