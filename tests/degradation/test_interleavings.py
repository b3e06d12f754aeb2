"""Whatever requests do, in any order: every slot is given back, and never more than the limit are in progress."""

from __future__ import annotations

import random
import time

import anyio
import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import JSONResponse, StreamingResponse

from deia_degradation import DegradationManager
from deia_hardening.testing import ASGIRecorder, http_scope, running, websocket_scope

LIMIT = 4


def service():
    app = FastAPI()
    inside = {"now": 0, "most": 0}

    @app.get("/work")
    async def work():
        inside["now"] += 1
        inside["most"] = max(inside["most"], inside["now"])
        try:
            await anyio.sleep(0.004)
        finally:
            inside["now"] -= 1
        return "ok"

    @app.get("/threads")
    def threads():
        time.sleep(0.002)
        return "ok"

    @app.get("/fails")
    async def fails():
        await anyio.sleep(0.001)
        raise RuntimeError("as expected")

    @app.post("/either")  # one POST that answers as JSON or as events, as MCP and model gateways do
    async def either(events: bool = False):
        async def lines():
            for number in range(3):
                yield f"data: {number}\n\n"
                await anyio.sleep(0.002)

        return StreamingResponse(lines(), media_type="text/event-stream") if events else JSONResponse({})

    @app.get("/capital")  # Django's handler writes its header names so
    async def capital():
        async def lines():
            yield b"data: 1\n\n"
            await anyio.sleep(0.002)

        response = StreamingResponse(lines())
        response.raw_headers = [(b"Content-Type", b"text/event-stream")]
        return response

    @app.websocket("/socket")
    async def socket(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.receive_text()

    return app, inside


def client(app, rng):
    kind = rng.choice(["work", "work", "threads", "fails", "either", "either", "capital", "socket", "gone"])
    if kind == "socket":
        return ASGIRecorder(app, websocket_scope("/socket"), {"type": "websocket.connect"}, hang=rng.random() < 0.5)
    if kind == "either":
        scope = http_scope("POST", "/either", query_string=rng.choice([b"", b"events=true"]))
        return ASGIRecorder(app, scope, {"type": "http.request"}, hang=True)
    if kind == "gone":  # leaves as soon as anybody looks
        return ASGIRecorder(app, http_scope("GET", "/work"), {"type": "http.request"})
    return ASGIRecorder(app, http_scope("GET", f"/{kind}"), {"type": "http.request"}, hang=True)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("seed", range(3))
def test_every_slot_is_given_back(backend, seed):
    rng = random.Random(seed)
    app, inside = service()
    fixed = {"initial": LIMIT, "minimum": LIMIT, "maximum": LIMIT, "wait": "200ms", "places": 20}

    async def one(live, delay, patience):
        await anyio.sleep(delay)
        with anyio.move_on_after(patience):  # the server cancels it, wherever it stands
            await client(live.app, rng).run()

    async def main():
        async with running(app, {"home": ".deia", "degradation": {"admission": fixed}}) as live:
            manager = live.service(DegradationManager)
            async with anyio.create_task_group() as group:
                for _ in range(150):
                    group.start_soon(one, live, rng.random() * 0.3, rng.choice([0.001, 0.003, 0.01, 1.0]))
            with anyio.fail_after(15):
                while manager.gate.room.size or any(gate.room.size for gate in manager.threads.all()):
                    await anyio.sleep(0.01)
            assert manager.gate.in_flight == 0
            assert manager.gate.streams == 0
            assert not manager.open_streams
            assert [gate.in_flight for gate in manager.threads.all()] == [0]
            assert 0 < inside["most"] <= LIMIT
            assert (await live.get("/work")).status == 200

    anyio.run(main, backend=backend)


async def test_an_answer_that_turns_out_to_be_events_frees_its_slot_and_json_keeps_it_to_its_end():
    app, _ = service()
    async with running(app, {"home": ".deia", "degradation": {}}) as live:
        manager = live.service(DegradationManager)
        seen = []

        class Watching(ASGIRecorder):
            async def send(self, message):
                seen.append((manager.gate.in_flight, manager.gate.streams))
                await super().send(message)

        for path, query in (("/either", b"events=true"), ("/either", b"")):
            scope = http_scope("POST", path, query_string=query)
            await Watching(live.app, scope, {"type": "http.request"}, hang=True).run()
            seen.append("end")
        await Watching(live.app, http_scope("GET", "/capital"), {"type": "http.request"}, hang=True).run()
        stream, json, capital = seen[: seen.index("end")], seen[6:8], seen[9:]
        assert stream == [(0, 1), (0, 1), (0, 1), (0, 1), (0, 0)]
        assert json == [(1, 0), (0, 0)]
        assert capital == [(0, 1), (0, 1), (0, 0)]
