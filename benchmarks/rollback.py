"""How soon a rollback is in force: no more requests to new in the worker that decides, how late in another one.

    python benchmarks/rollback.py [--rounds 100]

Two worker processes of one home. One decides (by hand, or as its judge condemns); both call their hardened app without
a pause. For the worker that decides, requests begun after the decision that still reached the new version are counted;
for the other, the time from the decision to the beginning of the last request that did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from deia_hardening import harden
from deia_hardening.settings import Ratio
from deia_hardening.testing import Running, running
from deia_migration import MigrationManager, Plan, Step

PLAN = Plan(steps=(Step(weight=Ratio("50%"), gate="manual"),), promote="manual")


def version(name: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})

    return app


def hardened(home: Path) -> Any:
    module = types.ModuleType("bench_rollback")
    module.new = version(b"new")  # type: ignore[attr-defined]
    sys.modules["bench_rollback"] = module
    versions = {"v2": {"target": "inproc:bench_rollback:new"}}
    fast = {"tick": "10ms", "look": "10ms"}
    return harden(version(b"old"), {"home": str(home), "migration": {"versions": versions, "key": [], **fast}})


async def calls(live: Running, last: list[float], over: asyncio.Event) -> None:
    """Ask without a pause; `last[0]` is when the last request that reached the new version began."""
    while not over.is_set():
        began = time.monotonic()
        if (await live.post("/")).body == b"new":
            last[0] = began
        await asyncio.sleep(0)


async def follow(home: Path) -> None:
    """The other worker: at each line of its input it tells when it last asked the new version."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    last, over = [0.0], asyncio.Event()
    async with running(hardened(home), {}) as live:
        asking = loop.create_task(calls(live, last, over))
        while await lines.readline():
            print(json.dumps(last[0]), flush=True)
        over.set()
        await asking


async def decide(home: Path, rounds: int) -> None:
    follower = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--home", str(home), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert follower.stdin is not None
    assert follower.stdout is not None
    last, over, late, own = [0.0], asyncio.Event(), [], 0

    async def other() -> float:
        follower.stdin.write(b"\n")  # type: ignore[union-attr]
        return float(await follower.stdout.readline())  # type: ignore[union-attr]

    async with running(hardened(home), {}) as live:
        manager: MigrationManager = live.service(MigrationManager)
        router, stamps = manager._router, []
        latch = router.latch

        def stamped(rollout: str) -> None:
            latch(rollout)
            stamps.append(time.monotonic())

        router.latch = stamped  # type: ignore[method-assign]
        asking = asyncio.get_running_loop().create_task(calls(live, last, over))
        for number in range(rounds):
            began = time.monotonic()
            rollout = await manager.start("v2", plan=PLAN)
            while last[0] < began or await other() < began:  # both workers ask the new version
                await asyncio.sleep(0.005)
            stamps.clear()
            if number % 2 == 0:  # as the judge does it, in the request that failed
                manager._engine.driver.condemned(rollout.id)
                await asyncio.sleep(0)
            await manager.rollback()
            decided = stamps[0]
            await asyncio.sleep(0.1)
            own += last[0] > decided
            late.append(max(0.0, await other() - decided))
            while manager.status().phase != "rolled-back":
                await asyncio.sleep(0.01)
        over.set()
        await asking
    follower.stdin.close()
    await follower.wait()
    late.sort()
    print(f"{rounds} rollbacks; requests to new after the decision in the worker that decides: {own}")
    p50, p99 = (1000 * late[math.ceil(part * rounds) - 1] for part in (0.5, 0.99))
    print(f"last request to new in the other worker, ms later: p50 {p50:.2f}, p99 {p99:.2f}, max {1000 * late[-1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--home", type=Path, help="be the other worker, of this home")
    arguments = parser.parse_args()
    if arguments.home is not None:
        asyncio.run(follow(arguments.home))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(decide(Path(folder, ".deia"), arguments.rounds))


if __name__ == "__main__":
    main()
