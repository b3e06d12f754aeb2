"""Settings and flags beside dynaconf, pydantic-settings and the OpenFeature client: `python benchmarks/config.py`.

Reads are timed as the fastest of several rounds, in nanoseconds per read. Reloads are timed from the save to the
first request that sees the new value, while other requests go on. What is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from deia_config import ConfigManager
from deia_config.flags import FlagSet, flags_from_text
from deia_hardening import current, harden
from deia_hardening.context import context_variable
from deia_hardening.settings import setting
from deia_hardening.testing.live import Running, running

READS = 200_000
ROUNDS = 7


@attrs.frozen
class Limits:
    """The benchmark's own settings."""

    max_bots: int = setting(10, "bots", ge=1, le=1_000_000)
    label: str = setting("x", "a label")


def per_call(function: Callable[[], Any], reads: int = READS) -> float:
    """Nanoseconds per call, the loop's own cost taken off."""
    empty = min(timeit.repeat("pass", number=reads, repeat=ROUNDS))
    best = min(timeit.repeat(function, number=reads, repeat=ROUNDS))
    nothing = min(timeit.repeat(lambda: None, number=reads, repeat=ROUNDS))
    del empty
    return (best - nothing) / reads * 1e9


def expression(code: str, names: dict[str, Any], reads: int = READS) -> float:
    """Nanoseconds per evaluation of an expression, the loop's own cost taken off."""
    best = min(timeit.repeat(code, globals=names, number=reads, repeat=ROUNDS))
    empty = min(timeit.repeat("pass", globals=names, number=reads, repeat=ROUNDS))
    return (best - empty) / reads * 1e9


def line(name: str, value: float, unit: str, bar: str = "") -> None:
    print(f"  {name:<52} {value:>10,.1f} {unit:<4} {bar}")


def read_others() -> None:
    try:
        from pydantic_settings import BaseSettings
    except ImportError:
        print("  pydantic-settings is not installed and is left out")
    else:

        class PydanticLimits(BaseSettings):
            max_bots: int = 10

        line("pydantic-settings: settings.max_bots", expression("s.max_bots", {"s": PydanticLimits()}), "ns")
    try:
        from dynaconf import Dynaconf
    except ImportError:
        print("  dynaconf is not installed and is left out")
    else:
        settings = Dynaconf(settings_files=[])
        settings.set("max_bots", 10)
        line("dynaconf: settings.max_bots", expression("s.max_bots", {"s": settings}, 20_000), "ns")
        line("dynaconf: settings.MAX_BOTS", expression("s.MAX_BOTS", {"s": settings}, 20_000), "ns")


TARGETED = {
    "flags": {
        "new-ui": {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": {"if": [{"ends_with": [{"var": "email"}, "@example.com"]}, "on", "off"]},
        },
        "split": {
            "state": "ENABLED",
            "variants": {"on": True, "off": False},
            "defaultVariant": "off",
            "targeting": {"fractional": [["on", 10], ["off", 90]]},
        },
        "static": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"},
    }
}


def read_flags() -> None:
    flags: FlagSet = flags_from_text(json.dumps(TARGETED))
    attributes = {"email": "ann@example.com", "route": "/x"}
    names = {"f": flags.value, "a": attributes}
    line("flag, static", expression("f('static', False, 'me', a)", names), "ns")
    line("flag, targeted by an attribute", expression("f('new-ui', False, 'me', a)", names), "ns", "(bar: 1,500)")
    line("flag, 10% rollout, a key seen before", expression("f('split', False, 'me', a)", names), "ns", "(bar: 1,500)")
    keys = iter([f"user-{n}" for n in range(60_000)])
    new = min(timeit.repeat(lambda: flags.value("split", False, next(keys), attributes), number=10_000, repeat=5))
    line("flag, 10% rollout, a new key each time", new / 10_000 * 1e9, "ns")
    try:
        from openfeature import api
        from openfeature.evaluation_context import EvaluationContext

        from deia_config.flags.provider import FlagProvider
    except ImportError:
        print("  openfeature-sdk is not installed and is left out")
        return
    api.set_provider(FlagProvider(flags), "bench")
    client = api.get_client("bench")
    context = EvaluationContext("me", attributes)
    names = {"c": client.get_boolean_value, "x": context}
    line("the same through the OpenFeature client", expression("c('new-ui', False, x)", names, 20_000), "ns")
    api.clear_providers()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the setting."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(current(Limits).max_bots).encode()})


def read_ours(run: Running) -> None:
    limits = run.core.revision.settings[Limits]
    line("deia: an attribute of the settings object", expression("s.max_bots", {"s": limits}), "ns")
    line("deia: current(Limits), outside of a request", expression("c(L)", {"c": current, "L": Limits}), "ns")

    seen: list[float] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        assert context_variable.get() is not None
        seen.append(expression("c(L)", {"c": current, "L": Limits}))
        seen.append(expression("c(L).max_bots", {"c": current, "L": Limits}))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    before = run.core.inner
    run.core.attach(inside)
    asyncio.get_running_loop()
    return_to = before

    async def ask() -> None:
        await run.get("/")
        run.core.attach(return_to)
        line("deia: current(Limits), in a request", seen[0], "ns", "(bar: 100)")
        line("deia: current(Limits).max_bots, in a request", seen[1], "ns")

    run.state["ask"] = ask


async def reloads(run: Running, folder: Path, saves: int, *, in_place: bool, pause: float) -> list[float]:
    """Milliseconds from each save to the first request that sees it, under load."""
    path, taken = folder / "h.yaml", []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await run.get("/")
            await asyncio.sleep(0.001)

    workers = [asyncio.create_task(load()) for _ in range(4)]
    start = int((await run.get("/")).body)
    for number in range(start + 1, start + 1 + saves):
        text = f"config: {{}}\napp:\n  max_bots: {number}\n  label: y\n"
        wanted = str(number).encode()
        beside = folder / ".h.tmp"
        beside.write_text(text)
        began = time.perf_counter()
        if in_place:
            path.write_text(text)
        else:
            os.replace(beside, path)
        while (await run.get("/")).body != wanted:
            await asyncio.sleep(0.001)
            if time.perf_counter() - began > 30:
                raise RuntimeError(f"save {number} was not taken up: {run.service(ConfigManager).status()}")
        taken.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(pause)
    stop.set()
    await asyncio.gather(*workers)
    return taken


def percentiles(name: str, values: list[float], bar: str) -> None:
    values = sorted(values)
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    line(f"{name}, median", statistics.median(values), "ms")
    line(f"{name}, p99 of {len(values)}", p99, "ms", bar)


async def live(saves: int) -> None:
    with tempfile.TemporaryDirectory(prefix="deia-bench-") as name:
        folder = Path(name) / ".deia" / "config"
        folder.mkdir(parents=True)
        (folder / "h.yaml").write_text("config: {}\napp:\n  max_bots: 1\n  label: y\n")
        hardened = harden(app, folder, app_settings=Limits)
        async with running(hardened, {}) as run:
            print("reading a setting")
            read_ours(run)
            await run.state.pop("ask")()
            read_others()
            print("reading a flag")
            read_flags()
            print("from the save to the new revision serving; 5 clients, each asking again after 1 ms")
            await reloads(run, folder, 5, in_place=False, pause=0.05)
            renamed = await reloads(run, folder, saves, in_place=False, pause=0.02)
            percentiles("write and rename", renamed, "(bar: 50)")
            saved = await reloads(run, folder, saves, in_place=True, pause=0.02)
            percentiles("save in place", saved, "(bar: 150)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=100, help="saves of each kind")
    asyncio.run(live(parser.parse_args().saves))


if __name__ == "__main__":
    main()
