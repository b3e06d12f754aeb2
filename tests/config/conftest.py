"""What the config tests share: an app with settings of its own, started from a folder of real files."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_config import ConfigManager
from deia_hardening import current, feature, harden, variant
from deia_hardening.plugin import Plugin
from deia_hardening.settings import setting
from deia_hardening.testing.live import Running, running


@attrs.frozen
class Limits:
    max_bots: int = setting(10, "bots", ge=1, le=64)
    label: str = setting("x", "a label")
    token: str | None = setting(None, "a secret", secret=True)
    folder: str = setting("a", "a path", file_only=True)
    store: str = setting("sqlite", "a store", restart=True)


@attrs.frozen
class PickySettings:
    value: int = setting(1, "13 is refused by check, 14 fails to be adopted")


class Picky(Plugin[PickySettings]):
    """A plugin that refuses one value and fails to follow another."""

    name = "picky"
    Settings = PickySettings

    async def check(self, settings: PickySettings) -> None:
        if settings.value == 13:
            raise ValueError("13 brings bad luck")

    async def adopted(self, old: PickySettings | None, new: PickySettings) -> None:
        if new.value == 14:
            raise RuntimeError("can't follow 14")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    limits = current(Limits)
    body = {
        "max_bots": limits.max_bots,
        "label": limits.label,
        "new": feature("new", default=False, key="me"),
        "color": variant("color", default="grey", key="me"),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class Service:
    """A running app, its manager and its folder of settings."""

    def __init__(self, run: Running, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.manager: ConfigManager = run.service(ConfigManager)

    async def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads((await self.run.get("/")).body)
        return body

    def save(self, text: str, name: str = "h.yaml") -> None:
        """In place."""
        (self.folder / name).write_text(text)

    def replace(self, text: str, name: str = "h.yaml") -> None:
        """Write beside and rename."""
        beside = self.folder / f".{name}.tmp"
        beside.write_text(text)
        os.replace(beside, self.folder / name)

    async def until(self, happened: Callable[[], Any], limit: float = 20.0) -> None:
        """Wait for something that another thread brings about."""
        for _ in range(int(limit / 0.005)):
            if await asyncio.to_thread(happened):
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"it did not happen within {limit} s: {self.manager.status()}")

    async def until_bots(self, count: int) -> None:
        from deia_hardening.app import find_core

        core = find_core(self.run.app)
        assert core is not None
        await self.until(lambda: core.revision.settings[Limits].max_bots == count)
        await self.until(lambda: self.manager.accepted is not None)

    async def records(self) -> list[dict[str, Any]]:
        """What config-changes.jsonl holds now."""
        return await asyncio.to_thread(self.journal)

    def journal(self) -> list[dict[str, Any]]:
        self.run.core.home.journal("config-changes", _journal_settings()).drain(5)
        path = self.run.home / "logs" / "config-changes.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for line in lines if "action" in (record := json.loads(line))]


def _journal_settings() -> Any:
    from deia_hardening.journal import JournalSettings

    return JournalSettings()


Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ".deia" / "config"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def start(folder: Path) -> Start:
    @asynccontextmanager
    async def start(text: str, source: Path | None = None) -> AsyncIterator[Service]:
        (folder / "h.yaml").write_text(text)
        hardened = await asyncio.to_thread(harden, app, source or folder, app_settings=Limits)
        async with running(hardened, {}) as run:
            yield Service(run, folder)

    return start


@pytest.fixture
def limits() -> type[Limits]:
    return Limits


@pytest.fixture
def picky() -> str:
    import sys
    import types

    module = types.ModuleType("config_test_plugins")
    module.Picky = Picky  # type: ignore[attr-defined]
    sys.modules["config_test_plugins"] = module
    return "config_test_plugins:Picky"
