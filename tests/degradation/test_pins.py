"""Pins, leases and the calendar: who asks for a mode, on which worker, for how long, and what stands written of it."""

from __future__ import annotations

import json

import anyio
import anyio.to_thread
import pytest
from degradation_service import changed, hello, http_only, settings

from deia_degradation import DegradationManager
from deia_degradation.events import ScalingChanged
from deia_hardening import harden
from deia_hardening.context import Actor, Mode
from deia_hardening.events import Event, ModeChanged
from deia_hardening.plugin import Latch
from deia_hardening.testing import FakeClock, running

ANN = Actor("user", "ann", "token")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_pinned_degraded_turns_features_off_and_unpin_turns_them_on(backend):
    async def main():
        async with running(hello, settings()) as app:
            assert (await app.get("/")).body == b"scaling on"
            manager = app.service(DegradationManager)
            await manager.pin("DEGRADED", actor=ANN, reason="load test")
            assert (await app.get("/")).body == b"scaling off"
            assert not manager.scaling_allowed
            await manager.unpin(actor=ANN)
            assert (await app.get("/")).body == b"scaling on"

    anyio.run(main, backend=backend)


async def test_a_change_of_mode_is_one_event_and_one_journal_line():
    seen: list[Event] = []
    async with running(hello, settings()) as app:
        app.core.events.subscribe(Event, seen.append, inline=True)
        manager = app.service(DegradationManager)
        await manager.pin("DEGRADED", seconds=60, actor=ANN, reason="load test")
        changes = [event for event in seen if isinstance(event, ModeChanged)]
        assert [(e.old, e.new, e.actor, e.reason) for e in changes] == [(Mode.FULL, Mode.DEGRADED, ANN, "load test")]
        assert [e.allowed for e in seen if isinstance(e, ScalingChanged)] == [False]
        journal = app.core.home.journals()
        for one in journal:
            assert await anyio.to_thread.run_sync(one.drain, 5)
        lines = (app.home / "logs" / "degradation-events.jsonl").read_text().rpartition("\n")[0].splitlines()
        kinds = [json.loads(line).get("kind") for line in lines]
        assert kinds.count("mode.changed") == 1
        assert kinds.count("mode.pinned") == 1


async def test_a_leased_signal_degrades_until_it_is_released():
    async with running(hello, settings()) as app:
        manager = app.service(DegradationManager)
        manager.signal("backend slow", seconds=60, reason="p99 over 3 s")
        assert manager.mode is Mode.DEGRADED
        async with changed(app):  # FULL is in force once its record is on disk
            manager.release("backend slow")
        assert manager.mode is Mode.FULL
        with pytest.raises(ValueError, match="backend slow"):
            manager.signal("backend slow", seconds=float("nan"))


class DeadJournal:
    """A journal on a dead disk; `asked` is set at the first record."""

    def __init__(self):
        self.asked = Latch()

    def append(self, record):
        self.asked.set()
        raise OSError("no disk")


@pytest.mark.parametrize("end", ["lease", "pin", "unpin"])
async def test_a_dead_disk_holds_up_a_higher_mode_and_no_lower_one(end, monkeypatch):
    async with running(hello, settings()) as app:
        manager = app.service(DegradationManager)
        dead, alive = DeadJournal(), manager.host.journal
        monkeypatch.setattr(manager.host, "journal", lambda name: dead)
        if end == "lease":
            manager.signal("x", seconds=3600)
        else:
            await manager.pin("MAINTENANCE", seconds=3600)
        assert manager.mode is not Mode.FULL
        lower = manager.mode
        dead.asked = Latch()
        if end == "unpin":
            with pytest.raises(OSError, match="no disk"):
                await manager.unpin()
        elif end == "lease":
            manager.release("x")
        else:
            clock = FakeClock(monotonic=manager.host.clock.monotonic() + 3601)
            monkeypatch.setattr(manager.host, "clock", clock)
            assert manager.mode is lower
        with anyio.fail_after(15):
            await dead.asked.wait()
        assert manager.mode is lower
        async with changed(app):
            monkeypatch.setattr(manager.host, "journal", alive)
            if end == "unpin":
                await manager.unpin()
            elif end == "pin":
                with anyio.fail_after(15):
                    while manager.control.mode is lower:  # what tries again sleeps on this clock
                        clock.advance(10)
                        await anyio.sleep(0.01)
        assert manager.mode is Mode.FULL


async def test_a_pin_is_seen_by_the_other_app_of_the_home_at_its_next_request(tmp_path):
    home = {**settings(), "home": str(tmp_path / ".deia")}

    @http_only
    async def other(scope, receive, send):
        await hello(scope, receive, send)

    async with running(harden(hello, home), home) as one, running(harden(other, home), home) as two:
        await one.service(DegradationManager).pin("DEGRADED", actor=ANN)
        assert (await two.get("/")).body == b"scaling off"
        await two.service(DegradationManager).unpin(actor=ANN)
        assert (await one.get("/")).body == b"scaling on"


async def test_a_pin_survives_a_restart_and_a_lost_page(tmp_path):
    home = {**settings(), "home": str(tmp_path / ".deia")}
    async with running(harden(hello, home), home) as app:
        await app.service(DegradationManager).pin("DEGRADED", actor=ANN, reason="x")
    for page in (tmp_path / ".deia" / "state").glob("*page*"):
        page.unlink()

    @http_only
    async def again(scope, receive, send):
        await hello(scope, receive, send)

    async with running(harden(again, home), home) as app:
        assert (await app.get("/")).body == b"scaling off"


@pytest.mark.parametrize("seconds", [0, -1, 86401])
async def test_a_pin_has_a_longest_time(seconds):
    async with running(hello, settings()) as app:
        with pytest.raises(ValueError, match="pin_max"):
            await app.service(DegradationManager).pin("DEGRADED", seconds=seconds)


async def test_the_operations_pin_unpin_and_tell():
    from deia_degradation.operations import PinInput
    from deia_hardening.operations import Call, NoInput
    from deia_hardening.problem import Problem
    from deia_hardening.runtime import runtime
    from deia_hardening.surface import Surface

    async with running(hello, settings()) as app:
        surface = app.service(Surface)

        async def invoke(name, value=NoInput()):
            async def collect():
                return [step async for step in surface.invoke(f"degradation.{name}", value, Call(ANN, "why"))][-1]

            return await runtime().run(collect)

        assert (await invoke("pin", PinInput("MAINTENANCE"))).mode == "MAINTENANCE"
        found = await invoke("status")
        assert found.demand["actor"] == "ann"
        assert found.demand["reason"] == "why"
        assert (await invoke("unpin")).mode == "FULL"
        with pytest.raises(Problem, match="not pinned"):
            await invoke("unpin")


async def test_the_schedule_is_in_force_from_its_first_moment():
    @http_only
    async def app(scope, receive, send):
        await hello(scope, receive, send)

    # 1_700_000_000 is 2023-11-14T22:13:20Z
    entry = {"start": "22:15", "end": "22:20", "reason": "disks"}
    async with running(app, settings(schedule=[entry])) as live:
        manager = live.service(DegradationManager)
        clock = FakeClock()
        manager.host.clock = clock
        manager.control.evaluate()
        assert manager.mode is Mode.FULL
        clock.advance(120)
        assert manager.mode is Mode.MAINTENANCE
        async with changed(live):
            clock.advance(300)
            assert manager.mode is Mode.MAINTENANCE  # until its end is on disk
        assert manager.mode is Mode.FULL
