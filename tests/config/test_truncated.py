"""Saves that stop half-way, on real files under a running service: none of them is ever in force."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

WHOLE = """\
# the settings of a service
config: {}
app:
  label: whole
  folder: data
  store: sqlite
  max_bots: %d
"""
LEFT_LYING = 2.4
"""Seconds that some of the halves stay as they are: longer than `cut_off_wait`."""


def interrupted(path: Path, text: str, cut: int, rng: random.Random) -> None:
    """An editor that truncates, writes some of it in one or several goes, and dies."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        data = text.encode()[:cut]
        middle = rng.randrange(len(data) + 1)
        os.write(descriptor, data[:middle])
        os.write(descriptor, data[middle:])
    finally:
        os.close(descriptor)


async def campaign(start: Any, limits: Any, saves: int, lying: int, seed: int) -> None:
    rng = random.Random(seed)
    async with start(WHOLE % 1) as service:
        core = service.run.core
        path = service.folder / "h.yaml"
        lie = set(rng.sample(range(saves), lying))
        number = 1
        for count in range(saves):
            text = WHOLE % rng.choice([number, 60])
            await asyncio.to_thread(interrupted, path, text, rng.randrange(len(text) - 1), rng)
            await asyncio.sleep(LEFT_LYING if count in lie else rng.choice([0, 0.001, 0.012]))
            seen = core.revision.settings[limits]
            assert (seen.max_bots, seen.label) == (number, "whole"), (count, path.read_text())
            if count % 25 == 24:  # the save is finished after all
                number = number % 50 + 1
                service.save(WHOLE % number)
                await service.until(lambda: core.revision.settings[limits].max_bots == number)
        assert not [record for record in await service.records() if record["action"] == "applied" and _half(record)]


def _half(record: dict[str, Any]) -> bool:
    return set(record["changes"]) != {"app.max_bots"}


async def test_no_interrupted_save_is_ever_in_force(start: Any, limits: Any) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    await campaign(start, limits, 300, 2, seed)


@pytest.mark.slow
async def test_ten_thousand_interrupted_saves(start: Any, limits: Any) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    await campaign(start, limits, 10_000, 5, seed)
