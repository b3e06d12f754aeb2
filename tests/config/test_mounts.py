"""Where containers put settings: a file that is mounted by itself, a folder that can't be written to."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TEXT = "config: {content_check: 100ms}\nhome: %s\napp: {max_bots: %d}\n"
Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts as a container's start does; needs root."""
    mounted: list[Path] = []

    def mount(source: Path, target: Path, *, read_only: bool = False) -> None:
        done = subprocess.run(["mount", "--bind", str(source), str(target)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"can't mount here: {done.stderr.decode().strip()}")
        mounted.append(target)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)

    if os.geteuid():
        pytest.skip("only root can mount")
    yield mount
    for target in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(target)], check=True)


async def test_a_bind_mounted_file_is_followed(start: Any, tmp_path: Path, mount: Mount) -> None:
    """What is written to the file outside shows in the mount; the mount's own folder never hears of it."""
    outside, folder = tmp_path / "outside.yaml", tmp_path / "inside"
    folder.mkdir()
    inside = folder / "hardening.yaml"
    inside.touch()
    outside.write_text(TEXT % (tmp_path / "home", 1))
    mount(outside, inside)
    async with start("", inside) as service:
        await service.until_bots(1)
        outside.write_text(TEXT % (tmp_path / "home", 2))
        await service.until_bots(2)
        outside.write_text("")
        await service.until(lambda: service.manager.refused is not None)
        assert "emptied" in service.manager.refused.problems[0]
        outside.write_text(TEXT % (tmp_path / "home", 3))
        await service.until_bots(3)


async def test_a_read_only_folder_is_followed_and_overridden(start: Any, tmp_path: Path, mount: Mount) -> None:
    real, folder = tmp_path / "real", tmp_path / "mounted"
    real.mkdir()
    folder.mkdir()
    (real / "h.yaml").write_text(TEXT % (tmp_path / "home", 1))
    mount(real, folder, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (folder / "x").touch()
    async with start("", folder) as service:
        await service.until_bots(1)
        assert await service.manager.set("app.max_bots", 7) == 2
        await service.until_bots(7)
        assert (tmp_path / "home/state/overrides.json").exists()
        await service.manager.unset("app.max_bots")
        beside = real / ".tmp"
        await asyncio.to_thread(beside.write_text, TEXT % (tmp_path / "home", 5))
        await asyncio.to_thread(os.replace, beside, real / "h.yaml")
        await service.until_bots(5)
