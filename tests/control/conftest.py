"""A running service with operations of every kind, and raw HTTP to its control plane."""

from __future__ import annotations

import asyncio
import enum
import json
import sys
import types
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from deia_hardening import harden
from deia_hardening.control.plugin import ControlPlugin
from deia_hardening.operations import NoInput, Operation, Progress, Role
from deia_hardening.plugin import Health, Plugin, Position, Problem
from deia_hardening.runtime import runtime
from deia_hardening.settings import Seconds, setting
from deia_hardening.store import Entry
from deia_hardening.testing import running
from deia_hardening.testing.live import Running


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class ProbeSettings:
    """Nothing."""


@attrs.frozen
class Window:
    """A part of a search."""

    first: int = setting(0, "first one", ge=0)
    last: int | None = setting(None, "last one")


@attrs.frozen
class ReadInput:
    """A search."""

    text: str = setting("", "what to look for", le=20)
    limit: int = setting(10, "how many", ge=1, le=100)
    colours: tuple[Colour, ...] = setting((), "which colours")
    since: Seconds = setting(Seconds("0s"), "how far back")
    exact: bool = setting(False, "no near ones")
    window: Window | None = setting(None, "which part")


@attrs.frozen
class ReadOutput:
    """What was found."""

    text: str
    limit: int
    colours: tuple[str, ...]
    revision: int


@attrs.frozen
class WriteInput:
    """A change."""

    value: str = setting(attrs.NOTHING, "the new value", le=100)


@attrs.frozen
class WriteOutput:
    """What was done, by whom and why."""

    actor: str
    auth: str
    reason: str
    if_revision: int | None
    revision: int


class Probe(Plugin[ProbeSettings]):
    """Operations of every kind."""

    name: ClassVar[str] = "probe"
    Settings: ClassVar[type] = ProbeSettings
    position: ClassVar[Position] = Position.INNER
    state: ClassVar[Health] = Health()
    done: ClassVar[list[str]] = []
    go: ClassVar[asyncio.Event | None] = None

    def health(self) -> Health:
        return self.state

    def operations(self) -> tuple[Operation, ...]:
        def make(name: str, handler: Any, **more: Any) -> Operation:
            options = {"role": Role.VIEWER, "output": WriteOutput, "summary": f"{name} it.", **more}
            return Operation(name=f"probe.{name}", handler=handler, **options)

        return (
            make("read", self.read, input=ReadInput, output=ReadOutput, changes=False),
            make("write", self.write, input=WriteInput, role=Role.OPERATOR, conditional=True),
            make("long", self.long, changes=False),
            make("deploy-slowly", self.deploy, role=Role.ADMIN),
            make("boom", self.boom, input=NoInput, changes=False),
            make("deep-local", self.write, input=WriteInput, role=Role.ADMIN, local=True),
        )

    async def read(self, value: ReadInput, call: Any) -> ReadOutput:
        return ReadOutput(value.text, value.limit, tuple(each.value for each in value.colours), 7)

    async def write(self, value: WriteInput, call: Any) -> WriteOutput:
        if call.if_revision not in (None, 7):
            raise Problem(412, "it is at revision 7; nothing was changed")
        self.done.append(value.value)
        return WriteOutput(call.actor.id, call.actor.auth, call.reason, call.if_revision, 8)

    async def long(self, value: NoInput, call: Any) -> AsyncIterator[Any]:
        for number in range(3):
            yield Progress(f"step {number}", number / 3)
        yield WriteOutput(call.actor.id, call.actor.auth, call.reason, None, 9)

    async def deploy(self, value: NoInput, call: Any) -> AsyncIterator[Any]:
        yield Progress("begun")
        assert self.go is not None
        await self.go.wait()
        self.done.append("deployed")
        yield WriteOutput(call.actor.id, call.actor.auth, call.reason, None, 10)

    async def boom(self, value: NoInput, call: Any) -> WriteOutput:
        raise RuntimeError("the secret inside")


module = types.ModuleType("deia_control_probe")
module.Probe = Probe  # type: ignore[attr-defined]
sys.modules["deia_control_probe"] = module


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for message in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{message}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Service:
    """A running service. Raw requests go by socket, by its own address, or by the app's port."""

    def __init__(self, run: Running) -> None:
        self.run = run
        self.home = run.home
        plugin = run.core.plugins["control"]
        assert isinstance(plugin, ControlPlugin)
        self.plugin = plugin
        self.store: Any = run.core.home._store
        self.port = 0

    @property
    def socket(self) -> str:
        return str(self.plugin._home.path)

    async def until(self, condition: Any, what: str) -> None:
        for _ in range(6000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"never: {what}")

    async def raw(self, data: bytes, port: int = 0) -> bytes:
        """Send bytes, read to the end."""
        if port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        else:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(-1), 20)
        except (ConnectionResetError, BrokenPipeError):
            return b""
        finally:
            writer.close()

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, port: int = 0
    ) -> Answer:
        sent = {"host": f"127.0.0.1:{port}" if port else "control", "content-length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        data = f"{method} {path} HTTP/1.1\r\n{lines}connection: close\r\n\r\n".encode() + body
        return Answer(await self.raw(data, port))

    async def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None, port: int = 0) -> Answer:
        sent = {"content-type": "application/json", **(headers or {})}
        return await self.ask("POST", path, json.dumps(value).encode(), sent, port)

    async def on_app(self, method: str, path: str, body: bytes = b"", **more: Any) -> Any:
        return await self.run.call(method, path, body, **more)

    async def token(self, role: str = "admin", name: str = "", **more: Any) -> str:
        made = await self.post("/deia/token/create", {"name": name or f"t-{role}", "role": role, **more})
        assert made.status == 200, made.body
        text: str = made.json["token"]
        return text

    async def entry(self, key: str) -> Entry | None:
        found: Entry | None = await self.store.get(key)
        return found


class Answer:
    """A raw HTTP answer, taken apart."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1]) if lines[0] else 0
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def serve(home: Path, sections: Mapping[str, Any] | None = None, **control: Any) -> AsyncIterator[Service]:
    Probe.done.clear()
    Probe.state = Health()
    settings = {"home": str(home), "control": control, "probe": {"use": "deia_control_probe:Probe"}, **(sections or {})}
    hosts = control.get("listen")

    async def fresh(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    hardened = await asyncio.to_thread(harden, fresh, settings)
    async with running(hardened, settings) as run:
        service = Service(run)
        await service.until(lambda: service.plugin._home.owned and service.plugin._health.figures, "the socket is ours")
        service.store = run.core.home._store
        if hosts:
            service.port = await _port(service)
        yield service


async def _port(service: Service) -> int:
    listener = service.plugin._listener
    await service.until(lambda: listener is not None and listener.address, "it listens")
    assert listener is not None and listener.address is not None
    return int(listener.address[1])


@asynccontextmanager
async def in_a_task(home: Path, sections: Mapping[str, Any] | None = None, **control: Any) -> AsyncIterator[Service]:
    """The same, entered and left by one task, as cancel scopes want it: a fixture's two halves are two tasks."""
    up: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    down = asyncio.Event()

    async def live() -> None:
        try:
            async with serve(home, sections, **control) as found:
                up.set_result(found)
                await down.wait()
        except BaseException as error:
            if up.done():
                raise
            up.set_exception(error)

    task = asyncio.create_task(live())
    yield await up
    down.set()
    await task


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with in_a_task(tmp_path / ".deia", bootstrap_token=False) as found:
        yield found


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Service]:
    async with in_a_task(tmp_path / ".deia", bootstrap_token=False, listen="127.0.0.1:0") as found:
        yield found


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Service]:
    """Listens, and counts no failed tries: a generated wrong token must be told as such."""
    options: dict[str, Any] = {"bootstrap_token": False, "listen": "127.0.0.1:0", "failed_tries": 1_000_000}
    async with in_a_task(tmp_path / ".deia", **options) as found:
        yield found


ALL_FIVE: dict[str, Any] = {name: {} for name in ("audit", "config", "degradation", "migration", "recovery")}


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Service]:
    """All five plugins on, listening, with no count of failed tries."""
    options: dict[str, Any] = {"bootstrap_token": False, "listen": "127.0.0.1:0", "failed_tries": 1_000_000}
    async with in_a_task(tmp_path / ".deia", ALL_FIVE, **options) as found:
        yield found


@pytest.fixture
def serving() -> Any:
    return serve


@pytest.fixture
def probe() -> type[Probe]:
    return Probe


@pytest.fixture
def on_loop() -> Any:
    return runtime().run
