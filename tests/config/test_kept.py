"""Run-time overrides of two machines (two homes) that share one store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_config import ConfigManager
from deia_hardening import harden
from deia_hardening.plugin import Problem
from deia_hardening.runtime import runtime
from deia_hardening.settings import setting
from deia_hardening.settings.state import Override, Overrides, decode_overrides, encode_overrides
from deia_hardening.testing.live import running


@attrs.frozen
class Limits:
    max_bots: int = setting(1, "bots", ge=1, le=64)


async def app(scope: Any, receive: Any, send: Any) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


def machine(path: Path, store: Path, check: str = "50ms") -> Any:
    folder = path / ".deia" / "config"
    folder.mkdir(parents=True)
    (folder / "h.yaml").write_text(f"config: {{content_check: {check}}}\nstore: {{url: 'sqlite:///{store}'}}\n")
    return harden(app, folder, app_settings=Limits)


def bots(run: Any) -> int:
    found: int = run.core.revision.settings[Limits].max_bots
    return found


async def until(true: Any) -> None:
    for _ in range(4000):
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def test_an_override_reaches_the_other_machine_and_survives_there(tmp_path: Path) -> None:
    store = tmp_path / "shared.db"
    one = await asyncio.to_thread(machine, tmp_path / "one", store)
    two = await asyncio.to_thread(machine, tmp_path / "two", store)
    async with running(one, {}) as first, running(two, {}) as second:
        await first.service(ConfigManager).set("app.max_bots", 7)
        await until(lambda: bots(second) == 7)
        await second.service(ConfigManager).set("app.max_bots", 9)
        await until(lambda: bots(first) == 9)
        assert first.service(ConfigManager).status().overrides == ("app.max_bots",)
    third = await asyncio.to_thread(machine, tmp_path / "three", store)
    async with running(third, {}) as later:
        await until(lambda: bots(later) == 9)
        await later.service(ConfigManager).unset("app.max_bots")
        assert bots(later) == 1


async def test_who_comes_second_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "shared.db"
    one = await asyncio.to_thread(machine, tmp_path / "one", store, "1h")  # it looks when it is told to
    async with running(one, {}) as run:
        follower = run.core.plugins["config"].follower
        manager = run.service(ConfigManager)
        await manager.set("app.max_bots", 7)
        look = follower.look

        async def later() -> None:
            """It was told of something, its own change perhaps, and would see the other one's too soon."""

        monkeypatch.setattr(follower, "look", later)
        await runtime().run(look)  # what it was at is over
        # another machine's change that this one has not seen yet
        theirs = encode_overrides(Overrides({"app.max_bots": Override(20)}))
        await run.core.plugins["config"].host.store.put("config/overrides", theirs)
        with pytest.raises(Problem) as caught:
            await manager.set("app.max_bots", 8)
        assert caught.value.status == 412
        await runtime().run(look)
        assert bots(run) == 20


def test_what_is_kept_comes_back_and_damage_is_told() -> None:
    kept = Overrides({"app.max_bots": Override([1, "x"], "ann", "why", 1.0)})
    assert decode_overrides(encode_overrides(kept), "x") == kept
    assert "x can't be read" in decode_overrides(b"{", "x").problem
    assert "newer release" in decode_overrides(b'{"format": 9, "overrides": {}}', "x").problem
