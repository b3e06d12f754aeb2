"""Synchronous endpoints take the slots of the threads that run them, and nobody else's."""

from __future__ import annotations

import threading

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from deia_degradation import DegradationManager
from deia_hardening.testing import ASGIRecorder, http_scope, running


def service():
    """An app with one synchronous endpoint that takes as long as it is held, and one that answers at once."""
    app = FastAPI()
    release = threading.Event()

    @app.get("/slow/{name}")
    def slow(name: str):
        release.wait(30)
        return name

    @app.get("/quick")
    async def quick():
        return "ok"

    return app, release


async def get(live, path):
    """A GET whose client stays until it is answered."""
    answer = await ASGIRecorder(live.app, http_scope("GET", path), {"type": "http.request"}, hang=True).run()
    return answer.status


async def until(condition):
    with anyio.fail_after(15):
        while not condition():
            await anyio.sleep(0.01)


async def test_slow_synchronous_calls_leave_asynchronous_ones_their_slots():
    app, release = service()
    answers = []
    async with running(app, {"home": ".deia", "degradation": {"admission": {"wait": "30s"}}}) as live:
        manager = live.service(DegradationManager)

        async def call(number):
            answers.append(await get(live, f"/slow/{number}"))

        async with anyio.create_task_group() as group:
            for number in range(45):
                group.start_soon(call, number)
            limiter = anyio.to_thread.current_default_thread_limiter()
            await until(lambda: limiter.borrowed_tokens == 40)
            (gate,) = manager.threads.all()
            await until(lambda: gate.room.size == 5)  # they wait where it is seen, not in the limiter
            assert limiter.statistics().tasks_waiting == 0
            assert gate.in_flight == 40
            assert manager.gate.in_flight == 0
            assert (await live.get("/quick")).status == 200
            assert manager.status()["threads"][0]["waiting"] == 5
            release.set()
    assert answers == [200] * 45


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_that_the_app_uses_otherwise_are_not_free(backend):
    app, release = service()
    release.set()

    async def main():
        async with running(app, {"home": ".deia", "degradation": {"admission": {"wait": "30s"}}}) as live:
            manager = live.service(DegradationManager)
            limiter = anyio.to_thread.current_default_thread_limiter()
            others = [object() for _ in range(int(limiter.total_tokens))]
            for one in others:
                limiter.acquire_on_behalf_of_nowait(one)
            statuses = []

            async def call():
                statuses.append(await get(live, "/slow/1"))

            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await until(lambda: manager.threads.all() and manager.threads.all()[0].room.size == 1)
                assert statuses == []
                for one in others:
                    limiter.release_on_behalf_of(one)
            assert statuses == [200]

    anyio.run(main, backend=backend)


async def test_more_threads_at_run_time_are_taken_up():
    app, release = service()
    async with running(app, {"home": ".deia", "degradation": {"admission": {"wait": "30s"}}}) as live:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 3
        manager = live.service(DegradationManager)
        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(get, live, f"/slow/{number}")
            await until(lambda: manager.threads.all() and manager.threads.all()[0].room.size == 3)
            limiter.total_tokens = 6
            await until(lambda: manager.threads.all()[0].in_flight == 6)
            release.set()


async def test_turned_off_they_share_the_slots_of_all():
    app, release = service()
    release.set()
    async with running(app, {"home": ".deia", "degradation": {"admission": {"threads": False}}}) as live:
        assert (await live.get("/slow/1")).status == 200
        assert live.service(DegradationManager).threads.all() == []


async def test_a_synchronous_endpoint_of_a_mounted_starlette_app_counts():
    held, release = threading.Event(), threading.Event()

    def slow(request):
        held.set()
        release.wait(30)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Mount("/sub", routes=[Route("/slow", slow)])])
    async with running(app, {"home": ".deia", "degradation": {}}) as live, anyio.create_task_group() as group:
        group.start_soon(live.get, "/sub/slow")
        await until(held.is_set)
        manager = live.service(DegradationManager)
        assert [gate.in_flight for gate in manager.threads.all()] == [1]
        release.set()
        await until(lambda: [gate.in_flight for gate in manager.threads.all()] == [0])
