"""In MAINTENANCE open streams get a drain deadline and are then told that their client has left."""

from __future__ import annotations

import anyio
import pytest

from deia_degradation import DegradationManager
from deia_hardening.testing import ASGIRecorder, http_scope, running, websocket_scope

EVENTS = [(b"content-type", b"text/event-stream")]


def settings(**maintenance):
    return {"home": ".deia", "degradation": {"modes": {"tick": "100ms"}, "maintenance": {"drain": "0s", **maintenance}}}


async def until(condition):
    with anyio.fail_after(15):
        while not condition():
            await anyio.sleep(0.01)


class Service:
    """Streams of every kind, and how each of them ended."""

    def __init__(self):
        self.ends = {}

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return
        try:
            await getattr(self, scope["path"].strip("/"))(scope, receive, send)
        except OSError as error:
            self.ends[scope["path"]] = str(error)
            raise

    async def listens(self, scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        self.ends["/listens"] = (await receive())["type"]

    async def listened(self, scope, receive, send):
        """Waits for its client to leave from before its answer starts, as Starlette's streams may."""
        await receive()
        async with anyio.create_task_group() as group:

            async def answer():
                await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
                await anyio.sleep_forever()

            group.start_soon(answer)
            self.ends["/listened"] = (await receive())["type"]
            group.cancel_scope.cancel()

    async def talks(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        while True:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await anyio.sleep(0.01)

    async def socket(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        self.ends["/socket"] = (message["type"], message["code"])

    async def sends(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await anyio.sleep(0.01)


def client(app, path, kind):
    if kind == "http":
        return ASGIRecorder(app, http_scope("GET", path), {"type": "http.request"}, hang=True)
    return ASGIRecorder(app, websocket_scope(path), {"type": "websocket.connect"}, hang=True)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("path", "kind", "end"),
    [
        ("/listens", "http", "http.disconnect"),
        ("/listened", "http", "http.disconnect"),
        ("/talks", "http", "this stream's time is over: the service is under maintenance"),
        ("/socket", "websocket", ("websocket.disconnect", 1012)),
        ("/sends", "websocket", "this WebSocket's time is over: the service is under maintenance"),
    ],
)
def test_a_stream_ends_when_the_drain_is_over(backend, path, kind, end):
    async def main():
        service = Service()
        async with running(service, settings()) as live, anyio.create_task_group() as group:
            manager = live.service(DegradationManager)
            one = client(live.app, path, kind)
            group.start_soon(one.run)
            await until(lambda: len(manager.open_streams) == 1 and len(one.sent) >= 1)
            await manager.pin("MAINTENANCE", reason="new disks")
            await until(lambda: path in service.ends)
            await until(lambda: manager.gate.streams == 0)
            assert service.ends[path] == end
            assert not manager.open_streams
            if kind == "websocket":
                closed = [message for message in one.sent if message["type"] == "websocket.close"]
                assert [message["code"] for message in closed] == [1012]

    anyio.run(main, backend=backend)


async def test_a_stream_that_maintenance_serves_goes_on():
    service = Service()
    async with running(service, settings(allow=["GET /listens"])) as live, anyio.create_task_group() as group:
        manager = live.service(DegradationManager)
        group.start_soon(client(live.app, "/listens", "http").run)
        group.start_soon(client(live.app, "/socket", "websocket").run)
        await until(lambda: len(manager.open_streams) == 2)
        await manager.pin("MAINTENANCE")
        await until(lambda: len(manager.open_streams) == 1)
        await until(lambda: service.ends)  # the app hears of it just after its client
        assert service.ends == {"/socket": ("websocket.disconnect", 1012)}
        group.cancel_scope.cancel()


async def test_streams_go_on_until_the_drain_is_over_and_after_an_unpin():
    service = Service()
    async with running(service, settings(drain="1h")) as live, anyio.create_task_group() as group:
        manager = live.service(DegradationManager)
        group.start_soon(client(live.app, "/socket", "websocket").run)
        await until(lambda: len(manager.open_streams) == 1)
        await manager.pin("MAINTENANCE")
        await until(lambda: manager.control.readings)  # a tick has passed
        assert service.ends == {}
        await manager.unpin()
        assert service.ends == {}
        group.cancel_scope.cancel()


async def test_turned_off_admission_still_ends_streams():
    service = Service()
    given = settings()
    given["degradation"]["admission"] = {"enabled": False}
    async with running(service, given) as live, anyio.create_task_group() as group:
        manager = live.service(DegradationManager)
        group.start_soon(client(live.app, "/listens", "http").run)
        await until(lambda: len(manager.open_streams) == 1)
        await manager.pin("MAINTENANCE")
        await until(lambda: service.ends == {"/listens": "http.disconnect"})


async def test_streams_end_also_where_no_signal_handler_was_installed(monkeypatch):
    monkeypatch.setattr("deia_hardening.signals.install", lambda core, schedule: None)
    service = Service()
    async with running(service, settings()) as live, anyio.create_task_group() as group:
        manager = live.service(DegradationManager)
        group.start_soon(client(live.app, "/listened", "http").run)
        await until(lambda: len(manager.open_streams) == 1)
        await manager.pin("MAINTENANCE")
        await until(lambda: service.ends == {"/listened": "http.disconnect"})
