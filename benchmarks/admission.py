"""What degradation costs a request in FULL with nothing wrong: processor time in a tight loop, beside the HTTP.

    python benchmarks/admission.py

Hardened apps are called directly: with the core alone, with admission, and with a pool of three bots that answer at
once, with and without a hedge watched for. Choosing a bot and judging it is also measured by itself. Microseconds;
the quietest round and the median of 40.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from deia_degradation import Bot, DegradationManager
from deia_degradation.pool.bot import Verdict
from deia_degradation.pool.members import Members
from deia_hardening.testing import http_scope, running

REQUESTS, ROUNDS = 500, 40
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"ok"}


def app() -> Any:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(START)
            await send(BODY)

    return answer


async def send(message: Any) -> None:
    pass


async def receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def measure(hardened: Any) -> tuple[float, float]:
    """Microseconds of processor time per request: least, median."""
    found = []
    for _ in range(ROUNDS):
        scopes = [http_scope("GET", "/x") for _ in range(REQUESTS)]
        begun = time.process_time()
        for scope in scopes:
            await hardened(scope, receive, send)
        found.append((time.process_time() - begun) / REQUESTS * 1e6)
    found.sort()
    return found[0], found[ROUNDS // 2]


def choosing() -> tuple[float, float]:
    """The same for choosing one of three bots and judging it."""
    pool = Members("bench", [Bot("a"), Bot("b"), Bot("c")])
    found = []
    for _ in range(ROUNDS):
        now, begun = time.monotonic(), time.process_time()
        for _ in range(REQUESTS):
            now += 0.001
            pool.done(pool.choose(now, probe=True), now + 0.01, 0.01, Verdict.GOOD)  # type: ignore[arg-type]
        found.append((time.process_time() - begun) / REQUESTS * 1e6)
    found.sort()
    return found[0], found[ROUNDS // 2]


async def main() -> None:
    bots = [{"id": name, "upstream": "http://127.0.0.1:9"} for name in "abc"]
    cases: dict[str, dict[str, Any]] = {"core": {"degradation": {"enabled": False}}, "admission": {"degradation": {}}}
    for name, hedge in (("pool", False), ("pool, hedge watched", True)):
        pool = {"bots": bots, "routes": ["/x"], "retry": {"hedge": hedge}}
        cases[name] = {"degradation": {"pools": {"bench": pool}}}
    core = (0.0, 0.0)
    for name, settings in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            async with running(app(), {"home": str(Path(folder) / ".deia"), **settings}) as live:
                if "pool" in name:
                    for member in live.service(DegradationManager).pool("bench").members():
                        member.target = app()
                least, median = await measure(live.app)
        core = core if any(core) else (least, median)
        beyond = "" if name == "core" else f"  beyond the core {least - core[0]:5.2f} {median - core[1]:5.2f}"
        print(f"{name:20} least {least:6.2f} median {median:6.2f}{beyond}", flush=True)
    least, median = choosing()
    print(f"{'choose and judge':20} least {least:6.2f} median {median:6.2f}")


if __name__ == "__main__":
    asyncio.run(main())
