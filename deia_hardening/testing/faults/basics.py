"""Seeds that are printed and can be replayed, and tools that may be missing, named when they are."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

SEED_VARIABLE = "DEIA_FAULT_SEED"


class Unavailable(RuntimeError):  # noqa: N818
    """This machine or user can't cause that fault; the text says what is missing."""


def seed() -> int:
    """The seed of this run: `DEIA_FAULT_SEED`, else a fresh one. It is printed, so a failure can be replayed."""
    text = os.environ.get(SEED_VARIABLE)
    value = int(text) if text else random.SystemRandom().randrange(1 << 32)
    print(f"{SEED_VARIABLE}={value}", flush=True)
    return value


def available(tool: str) -> str | None:
    """None where `tool` (strace, tmpfs or fuse) can be used here, else the reason why not."""
    if sys.platform != "linux":
        return f"{tool} needs Linux"
    if tool == "strace":
        if shutil.which("strace") is None:
            return "strace is not installed"
        probe = subprocess.run(
            ["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
        )
        return None if probe.returncode == 0 else f"strace may not trace here: {probe.stderr.strip()[:200]}"
    if tool not in ("tmpfs", "fuse"):
        raise ValueError(f"unknown tool {tool!r}; known are strace, tmpfs and fuse")
    if os.geteuid() != 0:
        return f"{tool} needs root"
    if tool == "fuse":
        for needed in ("/dev/fuse", "/dev/loop-control"):
            if not Path(needed).exists():
                return f"{needed} is missing"
        for program in ("losetup", "mount", "umount", "mkfs.ext4"):
            if shutil.which(program) is None:
                return f"{program} is not installed"
    return None


def need(*tools: str) -> None:
    """Skip the running pytest test, visibly, where one of the tools is missing."""
    for tool in tools:
        reason = available(tool)
        if reason is not None:
            import pytest

            pytest.skip(reason)
