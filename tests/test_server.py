"""The serving scope: work from any thread runs on the serving loop, and ends with the lifespan."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening import NotStarted
from deia_hardening.runtime import runtime
from deia_hardening.testing import running


async def app(scope: Any, receive: Any, send: Any) -> None:
    return


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_work_started_from_the_background_loop_runs_on_the_serving_one(backend: str, home: Path) -> None:
    ended: list[str] = []

    async def work(value: int) -> tuple[int, str]:
        await anyio.sleep(0)
        return value, threading.current_thread().name

    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def main() -> None:
        async with running(app, {"home": str(home)}) as service:

            async def from_background() -> Any:
                service.core.serving.start(endless)
                return await service.core.serving.start(work, 7)

            with anyio.fail_after(20):
                assert await runtime().submit(from_background) == (7, threading.current_thread().name)
        assert ended == ["cancelled"]
        with pytest.raises(NotStarted):
            service.core.serving.start(work, 1)

    if backend == "trio":
        anyio.run(main, backend=backend)
    else:
        asyncio.run(main())  # as servers do: nothing tells anyio beforehand which library this is
