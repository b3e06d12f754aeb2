"""`PluginConformance`: what every plugin must leave alone, as a test class.

    class TestHello(PluginConformance):
        name = "hello"
        use = "my_package:HelloPlugin"

Each test hardens small ASGI apps with the plugin alone and checks that a client can't tell: scopes passed through,
exceptions before and after the response started, disconnects, streams, WebSockets, no lifespan, several loops, trio,
a reload during a request, a start that fails half-way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from deia_hardening.app import find_core, harden
from deia_hardening.context import SYSTEM, RequestContext, context_variable
from deia_hardening.errors import StartError
from deia_hardening.plugin import Plugin, Position
from deia_hardening.runtime import runtime
from deia_hardening.testing.asgi import ASGIRecorder, http_scope, websocket_scope
from deia_hardening.testing.live import running
from deia_hardening.types import ASGIApp, Receive, Scope, Send

BACKENDS = ("asyncio", "trio")


@attrs.frozen
class _NoSettings:
    pass


class FailsToStart(Plugin[_NoSettings]):
    """Starts after every other plugin, and fails."""

    name: ClassVar[str] = "zz-fails"
    Settings: ClassVar[type] = _NoSettings
    position: ClassVar[Position] = Position.INNER

    def run(self) -> contextlib.AbstractAsyncContextManager[None]:
        raise RuntimeError("this start fails on purpose")


class _BoomError(Exception):
    pass


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers HTTP with the body it got, in the chunks it came; echoes WebSockets; no lifespan of its own."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 207, "headers": [(b"x-app", b"1"), (b"x-app", b"2")]})
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})
    elif scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-ws", b"1")]})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "bye":
                await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
                return
            await send({"type": "websocket.send", "text": message["text"]})
    else:
        raise _BoomError(scope["type"])


class PluginConformance:
    """Subclass it with the plugin's `name` (its section), and `use` where it is not installed."""

    name: ClassVar[str]
    use: ClassVar[str | None] = None
    section: ClassVar[Mapping[str, Any]] = {}
    """Further settings of the plugin's section."""

    def settings(self, home: Path, **more: Any) -> dict[str, Any]:
        section = dict(self.section)
        if self.use is not None:
            section["use"] = self.use
        return {"home": str(home), self.name: section, **more}

    def hardened(self, app: ASGIApp, home: Path) -> Any:
        return harden(app, self.settings(home))

    def run(self, backend: str, function: Any, *args: Any) -> Any:
        return anyio.run(function, *args, backend=backend)

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        return tmp_path / ".deia"

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_status_headers_chunks_and_their_order_are_the_apps_own(self, backend: str, home: Path) -> None:
        app = self.hardened(_echo, home)
        chunks = [
            {"type": "http.request", "body": b"one", "more_body": True},
            {"type": "http.request", "body": b"", "more_body": True},
            {"type": "http.request", "body": b"two", "more_body": False},
        ]
        bare = self.run(backend, ASGIRecorder(_echo, http_scope("POST", "/x"), *chunks).run)
        seen = self.run(backend, ASGIRecorder(app, http_scope("POST", "/x"), *chunks).run)
        assert bare.sent[0]["status"] == 207
        assert [_essence(message) for message in seen.sent] == [_essence(message) for message in bare.sent]
        assert seen.error is None

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_stream_is_not_held_back(self, backend: str, home: Path) -> None:
        async def main() -> None:
            wait, arrived = anyio.Event(), anyio.Event()
            sent: list[Any] = []

            async def stream(scope: Scope, receive: Receive, send: Send) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                await wait.wait()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

            async def send(message: Any) -> None:
                sent.append(message)
                if message.get("body") == b"first":
                    arrived.set()

            async def receive() -> Any:
                await anyio.sleep_forever()

            app = self.hardened(stream, home)
            async with anyio.create_task_group() as group:
                group.start_soon(app, http_scope(), receive, send)
                with anyio.fail_after(20):
                    await arrived.wait()
                wait.set()
            assert [m.get("body") for m in sent] == [None, b"first", b""]

        self.run(backend, main)

    @pytest.mark.parametrize("started", [False, True])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_exception_of_the_app_comes_through_itself(self, backend: str, started: bool, home: Path) -> None:
        boom = _BoomError("mine")

        async def fails(scope: Scope, receive: Receive, send: Send) -> None:
            if started:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            raise boom

        seen = self.run(backend, ASGIRecorder(self.hardened(fails, home), http_scope()).run)
        assert seen.error is boom
        assert seen.kinds == (["http.response.start"] if started else [])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_disconnect_reaches_the_app(self, backend: str, home: Path) -> None:
        messages: list[str] = []

        async def listens(scope: Scope, receive: Receive, send: Send) -> None:
            messages.append((await receive())["type"])
            messages.append((await receive())["type"])

        message = {"type": "http.request", "body": b"", "more_body": False}
        seen = self.run(backend, ASGIRecorder(self.hardened(listens, home), http_scope(), message).run)
        assert seen.error is None
        assert messages == ["http.request", "http.disconnect"]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_cancelled_request_ends_with_the_apps_own_cancellation(self, backend: str, home: Path) -> None:
        ended: list[str] = []

        async def main() -> None:
            entered = anyio.Event()

            async def waits(scope: Scope, receive: Receive, send: Send) -> None:
                entered.set()
                try:
                    await anyio.sleep_forever()
                finally:
                    ended.append("finally")

            app = self.hardened(waits, home)
            async with anyio.create_task_group() as group:
                group.start_soon(ASGIRecorder(app, http_scope()).run)
                with anyio.fail_after(20):
                    await entered.wait()
                group.cancel_scope.cancel()

        self.run(backend, main)
        assert ended == ["finally"]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_websocket_is_the_apps_own(self, backend: str, home: Path) -> None:
        script = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "hello"},
            {"type": "websocket.receive", "text": "bye"},
        ]
        seen = self.run(backend, ASGIRecorder(self.hardened(_echo, home), websocket_scope("/ws"), *script).run)
        assert seen.error is None
        assert seen.kinds == ["websocket.accept", "websocket.send", "websocket.close"]
        assert seen.sent[0]["subprotocol"] == "chat"
        assert (seen.sent[2]["code"], seen.sent[2]["reason"]) == (4001, "bye")

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_other_scopes_pass_through(self, backend: str, home: Path) -> None:
        seen = self.run(backend, ASGIRecorder(self.hardened(_echo, home), {"type": "something.new"}).run)
        assert isinstance(seen.error, _BoomError)

    def test_it_serves_several_loops_at_once_with_no_lifespan(self, home: Path) -> None:
        app = self.hardened(_echo, home)
        statuses: list[int] = []

        def one(backend: str) -> None:
            message = {"type": "http.request", "body": b"x", "more_body": False}
            for _ in range(3):
                recorder = ASGIRecorder(app, http_scope("POST", "/x"), message)
                statuses.append(self.run(backend, recorder.run).status)

        threads = [threading.Thread(target=one, args=(backend,)) for backend in (*BACKENDS, *BACKENDS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [207] * 12

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_lifespan_starts_and_stops_it_around_the_apps_own(self, backend: str, home: Path) -> None:
        order: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert scope["type"] == "lifespan"
            await receive()
            order.append("up" if hardened.ready else "up too early")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            order.append("down" if hardened.ready else "down too late")
            await send({"type": "lifespan.shutdown.complete"})

        async def main() -> None:
            async with running(wrapped, {}):
                order.append("serving")

        wrapped = self.hardened(app, home)
        hardened: Any = find_core(wrapped)
        self.run(backend, main)
        assert order == ["up", "serving", "down"]
        assert not hardened.ready

    def test_a_reload_during_a_request_leaves_it_on_its_revision(self, home: Path) -> None:
        seen: list[tuple[int, int]] = []

        async def main() -> None:
            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                context = context_variable.get()
                assert isinstance(context, RequestContext)
                before = context.revision.number
                await runtime().run(core.propose, {"requests": {"lame_duck": f"{before}s"}}, "test", SYSTEM, "test")
                seen.append((before, context.revision.number))
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})

            wrapped = self.hardened(app, home)
            core: Any = find_core(wrapped)
            for _ in range(2):
                recorder = await ASGIRecorder(wrapped, http_scope()).run()
                assert recorder.error is None
                assert recorder.status == 204

        self.run("asyncio", main)
        assert [before == after for before, after in seen] == [True, True]
        assert seen[1][0] > seen[0][0]

    def test_it_is_turned_off_and_on_by_a_reload(self, home: Path) -> None:
        async def main() -> None:
            wrapped = self.hardened(_echo, home)
            core: Any = find_core(wrapped)
            message = {"type": "http.request", "body": b"x", "more_body": False}
            for enabled in (False, True):
                await runtime().run(core.propose, {self.name: {"enabled": enabled}}, "test", SYSTEM, "test")
                assert (self.name in core.plugins) is enabled
                assert (await ASGIRecorder(wrapped, http_scope("POST", "/x"), message).run()).status == 207

        self.run("asyncio", main)

    def test_a_start_that_fails_halfway_stops_it_again(self, home: Path) -> None:
        async def main() -> None:
            fails = {"use": f"{FailsToStart.__module__}:FailsToStart"}
            app = harden(_echo, self.settings(home, **{"zz-fails": fails}))
            core: Any = find_core(app)
            recorder = await ASGIRecorder(app, http_scope()).run()
            assert recorder.status == 503
            assert int(recorder.headers["retry-after"]) >= 1
            assert not core.lives
            with pytest.raises(StartError, match="zz-fails"):
                await core.ensure()

        self.run("asyncio", main)


def _essence(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "headers"} | {
        "headers": [pair for pair in message.get("headers", ()) if pair[0].startswith(b"x-app")]
    }
