"""What the test of many reloads serves: its settings, and what the process holds."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import attrs

from deia_config import ConfigManager
from deia_hardening import current, feature, harden
from deia_hardening.revision import Revision
from deia_hardening.runtime import runtime
from deia_hardening.settings import setting


@attrs.frozen
class Limits:
    number: int = setting(0, "grows with every save", ge=0)
    label: str = setting("n0", "goes with the number")


async def _tasks() -> int:
    return len(asyncio.all_tasks())


async def holdings() -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return {
        "kib": next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": await _tasks() + await runtime().run(_tasks),
        "revisions": sum(isinstance(each, Revision) for each in gc.get_objects()),
        "revision": current(ConfigManager).revision,
    }


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    if scope["path"] == "/holdings":
        body: dict[str, Any] = await holdings()
    else:
        before = current(Limits)
        await asyncio.sleep(0)  # a reload may come here
        after = current(Limits)
        body = {
            "number": before.number,
            "label": before.label,
            "whole": before is after,
            "flag": feature("f", default=False),
        }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if os.environ.get("RELOADING_CONFIG"):
    app = harden(bare, os.environ["RELOADING_CONFIG"], app_settings=Limits)
