"""The plugin in a hardened app: transparent when all is well, and each mode does what it says."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from deia_degradation import DegradationManager
from deia_degradation.events import ScalingChanged
from deia_hardening import feature, harden
from deia_hardening.context import Actor, Mode
from deia_hardening.events import Event, ModeChanged
from deia_hardening.plugin import Latch
from deia_hardening.testing import ASGIRecorder, FakeClock, PluginConformance, http_scope, running

ANN = Actor("user", "ann", "token")


class TestDegradation(PluginConformance):
    name = "degradation"


def http_only(app):
    """An app that takes no part in the lifespan protocol."""

    async def wrapped(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    return wrapped


@http_only
async def hello(scope, receive, send):
    body = b"scaling on" if feature("scaling", default=True) else b"scaling off"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def changed(app):
    """Leave once the mode has changed within the block."""
    latch = Latch()
    subscription = app.core.events.subscribe(ModeChanged, lambda event: latch.set(), inline=True)
    yield
    with anyio.fail_after(30):
        await latch.wait()
    subscription.cancel()


def settings(**more):
    return {"home": ".deia", "degradation": {"disable_features": ["scaling"], **more}}


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
        lines = (app.home / "logs" / "degradation-events.jsonl").read_text().splitlines()
        kinds = [json.loads(line).get("kind") for line in lines]
        assert kinds.count("mode.changed") == 1
        assert kinds.count("mode.pinned") == 1


async def test_maintenance_answers_503_with_its_end_and_lets_the_allowed_pass():
    allow = {"maintenance": {"allow": ["GET /status"], "message": "Back soon."}}
    async with running(hello, settings(**allow)) as app:
        manager = app.service(DegradationManager)
        await manager.pin("MAINTENANCE", seconds=600, actor=ANN, reason="new disks")
        refused = await app.get("/x")
        assert refused.status == 503
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        problem = json.loads(refused.body)
        assert problem["mode"] == "MAINTENANCE"
        assert problem["detail"] == "Back soon."
        assert problem["reason"] == "new disks"
        assert problem["ends"].startswith("20")
        assert (await app.get("/status")).status == 200


async def test_maintenance_leaves_unknown_routes_and_methods_their_404_and_405():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    inner = [Route("/known", lambda request: PlainTextResponse("ok"), methods=["POST"])]
    app = Starlette(routes=[Route("/here", lambda request: PlainTextResponse("ok")), Mount("/sub", routes=inner)])
    async with running(app, settings()) as live:
        await live.service(DegradationManager).pin("MAINTENANCE", actor=ANN)
        statuses = {
            (method, path): (await live.call(method, path)).status
            for method, path in [
                ("GET", "/here"), ("GET", "/nowhere"), ("POST", "/here"), ("POST", "/sub/known"), ("GET", "/sub/x"),
            ]
        }  # fmt: skip
    assert statuses == {
        ("GET", "/here"): 503,
        ("GET", "/nowhere"): 404,
        ("POST", "/here"): 405,
        ("POST", "/sub/known"): 503,
        ("GET", "/sub/x"): 404,
    }


async def test_a_route_is_served_only_in_its_modes():
    rules = {"routes": [{"route": "POST /scale", "modes": ["FULL"]}]}
    async with running(hello, settings(**rules)) as app:
        assert (await app.post("/scale")).status == 200
        await app.service(DegradationManager).pin("DEGRADED", actor=ANN)
        refused = await app.post("/scale")
        assert refused.status == 503
        assert json.loads(refused.body)["mode"] == "DEGRADED"
        assert (await app.get("/other")).status == 200


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


async def test_a_full_pin_never_turns_admission_off():
    async with running(hello, settings(admission={"initial": 1, "minimum": 1, "maximum": 1, "wait": "0s"})) as app:
        manager = app.service(DegradationManager)
        await manager.pin("FULL", actor=ANN)
        assert manager.gate.enter()
        assert (await app.get("/")).status == 503
        manager.gate.leave(0.0, None)
        assert (await app.get("/")).status == 200


async def test_a_client_that_leaves_the_queue_leaves_no_trace():
    async with running(hello, settings(admission={"initial": 1, "minimum": 1, "maximum": 1})) as app:
        manager = app.service(DegradationManager)
        assert manager.gate.enter()
        left = ASGIRecorder(app.app, http_scope("GET", "/"), {"type": "http.request"}, {"type": "http.disconnect"})
        await left.run()
        assert left.sent == []
        assert manager.gate.room.size == 0
        assert manager.gate.in_flight == 1
        manager.gate.leave(0.0, None)
        assert manager.gate.in_flight == 0


async def test_an_event_stream_gives_its_slot_back_when_it_starts():
    started = anyio.Event()
    end = anyio.Event()

    @http_only
    async def stream(scope, receive, send):
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        started.set()
        await end.wait()
        await send({"type": "http.response.body", "body": b""})

    async with running(stream, settings()) as app, anyio.create_task_group() as group:
        manager = app.service(DegradationManager)
        group.start_soon(app.get, "/events")
        await started.wait()
        assert (manager.gate.in_flight, manager.gate.streams) == (0, 1)
        end.set()
        await anyio.wait_all_tasks_blocked()
        assert (manager.gate.in_flight, manager.gate.streams) == (0, 0)


async def test_a_slot_is_given_back_before_background_tasks_run():
    seen = []

    @http_only
    async def app_with_background(scope, receive, send):
        await hello(scope, receive, send)
        seen.append(scope["deia_hardening"].revision.services.get(DegradationManager).gate.in_flight)

    async with running(app_with_background, settings()) as app:
        await app.get("/")
    assert seen == [0]


async def test_ticks_stop_when_nothing_happens_and_start_with_the_next_request():
    quick = {"modes": {"tick": "100ms", "idle": "100ms"}}
    async with running(hello, settings(**quick)) as app:
        manager = app.service(DegradationManager)
        await app.get("/")
        assert manager.ticks.running
        with anyio.fail_after(20):
            while manager.ticks.running:
                await anyio.sleep(0.02)
        await app.get("/")
        assert manager.ticks.running


async def test_an_allowed_actor_passes_maintenance_and_a_claimed_one_does_not(monkeypatch):
    import sys
    import types

    module = types.ModuleType("degradation_actors")
    module.who = lambda scope: Actor("user", dict(scope["headers"])[b"x-me"].decode(), "token")
    module.claimed = lambda scope: Actor("user", dict(scope["headers"])[b"x-me"].decode(), "")
    monkeypatch.setitem(sys.modules, "degradation_actors", module)
    for resolver, statuses in (("who", [200, 503]), ("claimed", [503, 503])):
        more = {"requests": {"actor": [f"degradation_actors:{resolver}"]}}

        @http_only
        async def app(scope, receive, send):
            await hello(scope, receive, send)

        async with running(app, {**settings(maintenance={"allow_actors": ["ann"]}), **more}) as live:
            await live.service(DegradationManager).pin("MAINTENANCE")
            found = [(await live.get("/", headers={"x-me": me})).status for me in ("ann", "bob")]
            assert found == statuses


async def test_a_priority_is_believed_only_from_a_trusted_proxy():
    from deia_degradation.admission.room import Criticality
    from deia_degradation.middleware import Admission

    for proxies, expected in (["10.0.0.0/8"], Criticality.CRITICAL_PLUS), ([], Criticality.SHEDDABLE_PLUS):

        @http_only
        async def app(scope, receive, send):
            await hello(scope, receive, send)

        async with running(
            app, {**settings(), "requests": {"trusted_proxies": proxies, "client_address": "verified"}}
        ) as live:
            manager = live.service(DegradationManager)
            layer = Admission(app, manager, manager.settings)
            scope = http_scope("GET", "/", headers={"x-criticality": "critical_plus"}, client=("10.1.2.3", 1))

            class Context:
                actor = Actor()

            assert layer._criticality_of(scope, Context()) == expected


async def test_health_tells_of_streams_that_outlast_the_drain():
    async with running(hello, settings(maintenance={"drain": "0s"})) as app:
        manager = app.service(DegradationManager)
        assert manager.gate.enter_stream()
        await manager.pin("MAINTENANCE", reason="x")
        assert "1 streams are open" in app.core.health()["degradation"].detail
        manager.gate.leave_stream()


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


async def test_scaling_is_suggested_and_held_back():
    async with running(hello, settings()) as app:
        manager = app.service(DegradationManager)
        advice = manager.evaluate()
        assert (advice.suggestion, advice.allowed) == ("down", True)
        for _ in range(18):
            assert manager.gate.enter()
        assert manager.evaluate().suggestion == "up"
        manager.scaled()
        assert not manager.evaluate().allowed
        assert manager.evaluate().cooldown > 50
        await manager.pin("DEGRADED")
        assert "not in mode DEGRADED" in manager.evaluate().reason
        for _ in range(18):
            manager.gate.leave(0.0, None)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_with_nobody_inside(tmp_path):
    import os
    import sys
    import textwrap

    script = tmp_path / "forked.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, os, sys
            from deia_degradation import DegradationManager
            from deia_hardening import harden
            from deia_hardening.app import find_core
            from deia_hardening.testing import request

            async def app(scope, receive, send):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"ok"})

            app = harden(app, {"degradation": {"admission": {"initial": 1, "minimum": 1, "maximum": 1, "wait": "0s"}}})

            async def status():
                return (await request(app, "GET", "/")).status

            assert asyncio.run(status()) == 200
            manager = find_core(app).services.get(DegradationManager)
            assert manager.gate.enter()
            assert asyncio.run(status()) == 503
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = 0 if asyncio.run(status()) == 200 else 2
                finally:
                    os._exit(code)
            _, code = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(code))
            """
        )
    )
    import subprocess

    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert os.path.isdir(tmp_path / ".deia")
