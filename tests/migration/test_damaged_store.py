"""A control store that is damaged, or deleted, under a rollout: it goes on at or below its journaled weight."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening.settings import Ratio
from deia_hardening.store import StoreError
from deia_migration import MigrationManager, Plan, Step
from deia_migration.book import CURRENT, FIELD

STEPS = Plan(steps=tuple(Step(weight=Ratio(f"{weight}%"), gate="manual") for weight in (5, 20, 60)), promote="manual")


def damage(path: Path) -> None:
    path.write_bytes(b"damaged" * 2000)


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [damage, delete])
@pytest.mark.parametrize("end", ["promoted", "rolled back"])
async def test_while_serving(pair: Any, until: Any, harm: Any, end: str) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=STEPS)
        await until(lambda: manager.status().weight == 0.05)
        store = manager._engine.host.store
        await store.stop()  # as when nobody used it for a while
        harm(pair.folder / ".deia" / "state" / "store.db")
        with contextlib.suppress(StoreError):
            await store.get(CURRENT)  # whoever looks first finds the damage
        for _ in range(3000):
            with contextlib.suppress(StoreError):
                if await store.get(CURRENT) is not None:
                    break
            await anyio.sleep(0.005)
        else:
            raise AssertionError("the rollout was not put back")
        assert manager.status().weight == 0.05
        await until(lambda: (store.page.state().get(FIELD) or {}).get("weight") == 0.05)
        if end == "promoted":
            await manager.promote(full=True)
        else:
            await manager.rollback(reason="by hand")
        await until(lambda: manager.status().phase == ("done" if end == "promoted" else "rolled-back"))


@pytest.mark.parametrize("harm", [damage, delete])
async def test_between_two_starts(pair: Any, until: Any, harm: Any) -> None:
    async with pair.up() as live:
        manager: MigrationManager = live.service(MigrationManager)
        await manager.start("v2", plan=STEPS)
        await until(lambda: manager.status().weight == 0.05)
    harm(pair.folder / ".deia" / "state" / "store.db")
    async with pair.up() as live:
        manager = live.service(MigrationManager)
        assert manager.status().weight <= 0.05
        await until(lambda: manager.status().weight == 0.05)
        await manager.rollback(reason="by hand")
        await until(lambda: manager.status().phase == "rolled-back")
