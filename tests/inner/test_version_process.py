"""A version process with all five plugins on: a real child of a real front, and what its handlers find there."""

from __future__ import annotations

import json
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import frozen
from starlette.applications import Starlette

from deia_audit import AuditLogger
from deia_degradation import DegradationManager
from deia_hardening import setting
from deia_hardening.runtime import runtime
from deia_hardening.settings.units import Seconds
from deia_hardening.testing import http_scope, running
from deia_hardening.upstream import ChildContext, ProcessSettings, UpstreamSettings, open_upstream

VERSION = """
import json
from attrs import frozen
from deia_audit import AuditLogger, record
from deia_config import ConfigManager
from deia_degradation import DegradationManager
from deia_hardening import Mode, NotEnabled, RequestContext, current, feature, harden, setting
from deia_hardening.plugin import VersionSplit
from deia_hardening.upstream.inner import link
from deia_recovery import Registry, TaskQueue

bots = Registry("bots", dict)
jobs = TaskQueue("jobs", dict)

@frozen
class Limits:
    most: int = setting(3, "bots at most")

async def act(path):
    context = current(RequestContext)
    if path == "/record":
        receipt = record("bot.assigned", target=("bot", "b7"), reason="capacity", change={"state": ("idle", "busy")})
        await receipt.durable()
        return {"done": receipt.done()}
    if path == "/flood":
        return {"all": [record("bot.seen", number=n, text="x" * 800) is not None for n in range(3000)][-1]}
    if path == "/registry":
        await bots.put("b7", {"state": "busy"})
        await jobs.submit({"n": 1})
        task = await jobs.try_claim("w1", version="v2")
        return {"bot": (await bots.get("b7")), "task": None if task is None else task.body}
    if path == "/config":
        try:
            current(ConfigManager)
        except NotEnabled:
            return {"config": "not here"}
    return {
        "id": context.id, "actor": context.actor.id, "roles": sorted(context.actor.roles), "mode": context.mode.value,
        "version": context.version, "manager": current(DegradationManager).mode.value,
        "told": link().state.mode, "scaling": feature("scaling", default=True), "most": current(Limits).most,
        "split": type(current(VersionSplit)).__name__,
    }

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    try:
        said = await act(scope["path"])
        status = 200
    except Exception as error:
        said, status = {"error": repr(error)}, 500
    body = json.dumps(said, default=str).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})

app = harden(app, CONFIG, app_settings=Limits)
"""

SETTINGS = """
audit: {}
config: {settle: 20ms}
degradation:
  disable_features: [scaling]
migration: {}
recovery: {}
app:
  most: 5
"""


@frozen
class Limits:
    """The service's own settings, as the front knows them."""

    most: int = setting(3, "bots at most")


class Version:
    """The child of a running front, called as the front's router calls it."""

    def __init__(self, front: Any, upstream: Any) -> None:
        self.front = front
        self.upstream = upstream

    async def ask(self, path: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> dict[str, Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = http_scope(path=path, headers=list(headers))
        await self.upstream(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        assert sent[0]["status"] == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def trail(self) -> list[dict[str, Any]]:
        text = (self.front.core.home.path / "logs" / "audit-trail.jsonl").read_text()
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]  # whole ones: it is being written


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The folder of the version's code; the front's settings stand beside it."""
    config = tmp_path / ".deia" / "config"
    config.mkdir(parents=True)
    (config / "hardening.yaml").write_text(SETTINGS)
    (tmp_path / "code").mkdir()
    source = textwrap.dedent(VERSION).replace("CONFIG", repr(str(config)))
    (tmp_path / "code" / "version_two.py").write_text(source)
    return tmp_path / "code"


@asynccontextmanager
async def version_of(code: Path) -> AsyncIterator[Version]:
    """A front that runs, and a version of its service as its child."""
    process = ProcessSettings(folder=str(code), start_timeout=Seconds(60), stop_timeout=Seconds(5))
    async with running(Starlette(), code.parent / ".deia" / "config", app_settings=Limits) as app:
        upstream = open_upstream(
            "process:version_two:app", settings=UpstreamSettings(process=process), home=app.core.home.path, name="v2"
        )
        await upstream.start()
        try:
            yield Version(app, upstream)
        finally:
            await upstream.stop()


async def test_records_go_into_the_fronts_trail_and_state_is_the_homes(code: Path) -> None:
    async with version_of(code) as version:
        assert await version.ask("/record") == {"done": True}
        (record,) = [record for record in version.trail() if record.get("action") == "bot.assigned"]
        assert record["target"] == {"type": "bot", "id": "b7"} and record["process"] == "v2"
        assert record["change"] == {"state": ["idle", "busy"]} and record["reason"] == "capacity"
        assert record["request"]
        assert await version.ask("/registry") == {"bot": {"state": "busy"}, "task": {"n": 1}}
        assert await version.ask("/config") == {"config": "not here"}
        await version.ask("/flood")  # 3,000 at once: nobody waits for the pipe, and none is lost unseen
        front = version.front.service(AuditLogger)

        def counted() -> int:
            front.journal.drain(5)
            trail = version.trail()
            seen = sum(record.get("action") == "bot.seen" for record in trail)
            return seen + sum(record["count"] for record in trail if record.get("action") == "audit.gap")

        with anyio.fail_after(30):
            while await runtime().blocking(counted) < 3000:
                await anyio.sleep(0.05)


async def test_a_request_has_the_fronts_word_on_actor_mode_and_version(code: Path) -> None:
    async with version_of(code) as version:
        version.upstream._context = lambda scope: ChildContext(
            id="r-1", actor={"type": "user", "id": "ada", "roles": ["admin"]}, mode="DEGRADED", version="v2"
        )
        said = await version.ask("/")
        assert said["id"] == "r-1" and said["actor"] == "ada" and said["roles"] == ["admin"]
        assert said["mode"] == said["manager"] == "DEGRADED" and said["version"] == "v2"
        assert said["scaling"] is False and said["most"] == 5 and said["split"] == "PageSplit"


async def test_the_fronts_mode_flags_and_settings_reach_a_version_that_runs(code: Path) -> None:
    async with version_of(code) as version:
        said = await version.ask("/")
        assert said["told"] == "FULL" and said["scaling"] is True
        manager = version.front.service(DegradationManager)
        await manager.pin("DEGRADED", reason="a drill")
        with anyio.fail_after(20):
            while (await version.ask("/"))["told"] != "DEGRADED":
                await anyio.sleep(0.05)
        home = version.front.core.home.path
        (home / "config" / "hardening.yaml").write_text(SETTINGS.replace("most: 5", "most: 9"))
        with anyio.fail_after(20):
            while (await version.ask("/"))["most"] != 9:
                await anyio.sleep(0.05)
        await manager.unpin(reason="over")
        off = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off"}
        (home / "flags").mkdir()
        (home / "flags" / "flags.json").write_text(json.dumps({"flags": {"scaling": off}}))
        with anyio.fail_after(20):
            while (said := await version.ask("/"))["scaling"] is not False or said["told"] != "FULL":
                await anyio.sleep(0.05)
