"""What the upstream tests share: raw scripted peers in threads, a caller that records, both event loops."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

BACKENDS = ("asyncio", "trio")


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`run(async_function, *args)` on asyncio, then on trio; a test that hangs fails after 20 s."""

    def runner(function: Callable[..., Any], *args: Any) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(20):
                return await function(*args)

        return anyio.run(bounded, backend=request.param)

    runner.backend = request.param  # type: ignore[attr-defined]
    return runner


class RawServer:
    """Accepts on a Unix socket and lets `script(connection, number)` talk, one thread per connection."""

    def __init__(self, path: Path, script: Callable[[socket.socket, int], None]) -> None:
        self.path = str(path)
        self.script = script
        self.connections = 0
        self.errors: list[BaseException] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.threads: list[threading.Thread] = []
        self.open: list[socket.socket] = []
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            self.open.append(connection)
            thread = threading.Thread(target=self._talk, args=(connection, self.connections), daemon=True)
            self.connections += 1
            self.threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            try:
                self.script(connection, number)
            except AssertionError as error:
                self.errors.append(error)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        for thread in self.threads:
            thread.join(5)
        assert not self.errors, self.errors


@pytest.fixture
def raw_server(tmp_path: Path) -> Iterator[Callable[..., RawServer]]:
    """Start a scripted peer: `raw_server(script)`; `.path` is its Unix socket."""
    servers: list[RawServer] = []

    def start(script: Callable[[socket.socket, int], None]) -> RawServer:
        server = RawServer(tmp_path / f"{len(servers)}.sock", script)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


@pytest.fixture(name="read_head")
def _read_head() -> Callable[[socket.socket], bytes]:
    return read_head


@pytest.fixture
def answers() -> Callable[..., Callable[[socket.socket, int], None]]:
    """A script that gives each request on every connection the same bytes."""

    def script(data: bytes, seen: list[bytes] | None = None, close: bool = False) -> Any:
        def talk(connection: socket.socket, number: int) -> None:
            while head := read_head(connection):
                if seen is not None:
                    seen.append(head)
                connection.sendall(data)
                if close:
                    return

        return talk

    return script


@attrs.define
class Call:
    """One recorded call: the messages sent, and what it raised."""

    messages: list[dict[str, Any]]
    error: BaseException | None = None
    received: int = 0

    @property
    def status(self) -> int:
        return next(m["status"] for m in self.messages if m["type"] == "http.response.start")

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(next(m["headers"] for m in self.messages if m["type"] == "http.response.start"))

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def complete(self) -> bool:
        bodies = [m for m in self.messages if m["type"] == "http.response.body"]
        return bool(bodies) and not bodies[-1].get("more_body")


@pytest.fixture
def scope() -> Callable[..., dict[str, Any]]:
    def make(method: str = "GET", path: str = "/", headers: Any = (), **more: Any) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"front.example"), *headers],
            "client": ("203.0.113.9", 4711),
            "server": ("127.0.0.1", 80),
            "extensions": {},
            **more,
        }

    return make


@pytest.fixture
def call(scope: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """`await call(upstream, "POST", "/x", headers, [b"body", b"pieces"])` -> Call; errors are recorded, not raised."""

    async def make(
        upstream: Any,
        method: str = "GET",
        path: str = "/",
        headers: Any = (),
        body: list[bytes] | None = None,
        *,
        leave: bool = False,
        on_send: Callable[[dict[str, Any]], Any] | None = None,
        **more: Any,
    ) -> Call:
        result = Call([])
        pieces = list(body or [])
        gone = anyio.Event()
        if leave:
            gone.set()
        sent_body = False

        async def receive() -> dict[str, Any]:
            nonlocal sent_body
            result.received += 1
            if pieces:
                piece = pieces.pop(0)
                sent_body = not pieces
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            if not sent_body:
                sent_body = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            result.messages.append(message)
            if on_send is not None:
                await on_send(message)

        try:
            await upstream(scope(method, path, headers, **more), receive, send)
        except Exception as error:
            result.error = error
        return result

    return make


@pytest.fixture
def serve_asgi(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve an ASGI app with uvicorn in a thread on a Unix socket; returns its path."""
    import uvicorn

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any, **options: Any) -> str:
        path = str(tmp_path / f"asgi{len(running)}.sock")
        options = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1} | options
        config = uvicorn.Config(app, uds=path, **options)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=functools.partial(server.run), daemon=True)
        thread.start()
        deadline = threading.Event()
        for _ in range(1000):
            if server.started:
                break
            deadline.wait(0.01)
        assert server.started
        running.append((server, thread))
        return path

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
