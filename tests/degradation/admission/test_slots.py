"""When a slot is taken and given back in a hardened app, and who comes first."""

from __future__ import annotations

import anyio
import anyio.to_thread
from degradation_service import hello, http_only, settings

from deia_degradation import DegradationManager
from deia_hardening.context import Actor
from deia_hardening.testing import ASGIRecorder, http_scope, running

ANN = Actor("user", "ann", "token")


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
            scope["headers"].append((b"x-criticality", b"critical_plus"))  # one may be the client's own
            assert layer._criticality_of(scope, Context()) == Criticality.SHEDDABLE_PLUS
