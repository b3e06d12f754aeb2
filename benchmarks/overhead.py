"""What hardening costs: process CPU per request, in-process and behind uvicorn, beside `BaseHTTPMiddleware`.

`python benchmarks/overhead.py [--rounds N] [--requests N] [--wrk] [--json FILE]`. The variants take turns in one
process, round by round, so that a noisy machine hits them alike; figures are medians over the rounds, with what a
variant adds to the bare app; `quietest` compares each one's best round, which a busy machine disturbs least. CPU is
the whole process's, the background threads' drain of journals included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from deia_hardening import Actor, current, feature, harden
from deia_hardening.access import find_core
from deia_hardening.testing import running

AT_WORK = "all five at work"
FIVE = ("audit", "config", "degradation", "migration", "recovery")


class Nothing(BaseHTTPMiddleware):
    """What most people would write first, doing nothing."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


async def bot(request: Request) -> JSONResponse:
    return JSONResponse({"bot": request.path_params["bot"], "new": feature("new-scaling", default=False)})


def bare(middleware: int = 0) -> Starlette:
    routes = [Route(f"/api/r{n}", bot) for n in range(20)]
    routes.append(Route("/api/bots/{bot}/task", bot, methods=["GET", "POST"]))
    routes.append(Route("/api/pool/{bot}", bot))
    return Starlette(routes=routes, middleware=[Middleware(Nothing)] * middleware)


def who(scope: Any) -> Actor | None:
    """An actor resolver as people write it: a header, looked up."""
    for name, value in scope["headers"]:
        if name == b"x-user":
            return Actor("user", value.decode("latin-1"), auth="header")
    return None


candidate = bare()


async def bot_app(scope: Any, receive: Any, send: Any) -> None:
    """One of the pool's three bots."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"bot": "pooled"}'})


def at_work(home: Path) -> Any:
    """All five with work to do: a 10% rollout, a pool of three bots, a flag, the caller's name."""
    (home / "flags").mkdir(parents=True, exist_ok=True)
    flag = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}
    (home / "flags" / "flags.json").write_text(json.dumps({"flags": {"new-scaling": flag}}))
    bots = [{"id": f"b{n}", "upstream": f"inproc:{__name__}:bot_app"} for n in range(3)]
    return harden(
        bare(),
        {
            "home": str(home),
            "audit": {},
            "config": {},
            "degradation": {"pools": {"bots": {"bots": bots, "routes": ["/api/pool/{any}"]}}},
            "migration": {
                "versions": {"candidate": {"target": f"inproc:{__name__}:candidate"}},
                "plan": {"steps": [{"weight": "10%", "gate": "manual"}]},
                "key": ["header:x-user"],
            },
            "recovery": {},
            "requests": {"actor": [f"{__name__}:who"]},
        },
    )


async def begin_rollout(app: Any) -> None:
    """Start the rollout and wait until its weight is there."""
    from deia_migration import MigrationManager

    manager = current(MigrationManager, app=app)
    await manager.start("candidate")
    for _ in range(1200):
        rollout = manager.rollout
        if rollout is not None and rollout.weight > 0:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the rollout did not begin: {manager.status()}")


def variants(folder: Path) -> dict[str, Callable[[], Any]]:
    def hardened(name: str, settings: dict[str, Any]) -> Callable[[], Any]:
        return lambda: harden(bare(), {"home": str(folder / name), **settings})

    found: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "BaseHTTPMiddleware": lambda: bare(1),
        "BaseHTTPMiddleware x5": lambda: bare(5),
        "core": hardened("core", {}),
    }
    for name in FIVE:
        found[name] = hardened(name, {name: {}})
    found["all five"] = hardened("five", {name: {} for name in FIVE})
    found[AT_WORK] = lambda: at_work(folder / "work")
    return found


def scope(number: int) -> dict[str, Any]:
    path = "/api/bots/b7/task" if number % 2 else "/api/pool/b7"
    user = b"user-%d" % (number % 500)
    headers = [(b"host", b"127.0.0.1"), (b"user-agent", b"bench"), (b"accept", b"*/*"), (b"x-user", user)]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    pass


async def drive(app: Any, requests: int) -> list[float]:
    """Requests one after the other, each in a task of its own as a server does; returns their wall times."""
    times = []
    loop = asyncio.get_running_loop()
    for number in range(requests):
        begin = time.perf_counter()
        await loop.create_task(app(scope(number), _receive, _send))
        times.append(time.perf_counter() - begin)
    return times


def drained(app: Any) -> None:
    core = find_core(app)
    if core is not None:
        for journal in core.home.journals():
            journal.drain(30)


async def _rounds(
    made: dict[str, Any], cpu: dict[str, list[float]], tail: dict[str, list[float]], rounds: int, requests: int
) -> None:
    async with contextlib.AsyncExitStack() as lifespans:
        if AT_WORK in made:  # an in-process version has a lifespan of its own, which needs an open one
            await lifespans.enter_async_context(running(made[AT_WORK], {}))
            await begin_rollout(made[AT_WORK])
        for app in made.values():
            await drive(app, 300)
            drained(app)
        for _ in range(rounds):
            for name, app in made.items():
                gc.collect()
                begin = time.process_time()
                times = await drive(app, requests)
                drained(app)
                cpu[name].append((time.process_time() - begin) / requests * 1e6)
                tail[name].append(sorted(times)[int(requests * 0.99)] * 1e6)


def in_process(folder: Path, rounds: int, requests: int, only: str) -> dict[str, dict[str, float]]:
    made: dict[str, Any] = {}
    for name, make in variants(folder).items():
        if only and name not in only.split(",") and name != "bare":
            continue
        try:
            made[name] = make()
        except Exception as error:
            print(f"  {name}: left out: {error}", file=sys.stderr)
    cpu: dict[str, list[float]] = {name: [] for name in made}
    tail: dict[str, list[float]] = {name: [] for name in made}
    asyncio.run(_rounds(made, cpu, tail, rounds, requests))
    base = statistics.median(cpu["bare"])
    return {
        name: {
            "cpu_us": statistics.median(cpu[name]),
            "adds_us": statistics.median(a - b for a, b in zip(cpu[name], cpu["bare"], strict=True)),
            "quiet_adds_us": min(cpu[name]) - min(cpu["bare"]),
            "of_bare": statistics.median(cpu[name]) / base,
            "p99_us": statistics.median(tail[name]),
        }
        for name in made
    }


def behind_uvicorn(folder: Path, seconds: int) -> dict[str, dict[str, float]]:
    """Requests per second under wrk, the variants in turns."""
    results: dict[str, list[float]] = {}
    for turn in range(3):
        for name in ("bare", "core", "all five", "BaseHTTPMiddleware"):
            with _uvicorn(folder / f"wrk-{turn}", name) as port:
                out = subprocess.run(
                    ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{port}/api/bots/b7/task"],
                    capture_output=True, text=True, check=True,
                ).stdout  # fmt: skip
                line = next(line for line in out.splitlines() if line.startswith("Requests/sec"))
                results.setdefault(name, []).append(float(line.split()[1]))
    median = {name: statistics.median(values) for name, values in results.items()}
    return {name: {"per_second": value, "of_bare": value / median["bare"]} for name, value in median.items()}


@contextlib.contextmanager
def _uvicorn(folder: Path, variant: str) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "BENCH_VARIANT": variant, "BENCH_HOME": str(folder)}
    command = [sys.executable, "-m", "uvicorn", "overhead:served", "--factory", "--port", str(port)]
    command += ["--log-level", "error", "--no-access-log"]
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def served() -> Any:
    """The app that uvicorn serves, by the variable BENCH_VARIANT."""
    return variants(Path(os.environ["BENCH_HOME"]))[os.environ["BENCH_VARIANT"]]()


def import_time() -> dict[str, float]:
    """Milliseconds that `import deia_hardening` takes beyond Starlette."""
    script = (
        "import starlette.applications, time; t=time.perf_counter(); import deia_hardening; "
        "print((time.perf_counter()-t)*1000)"
    )
    taken = [float(subprocess.check_output([sys.executable, "-c", script])) for _ in range(7)]
    check = "import sys, deia_hardening; print([m for m in ('rich','cyclopts','watchfiles') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check]).strip() == b"[]"
    return {"import_ms": statistics.median(taken)}


def idle_memory() -> dict[str, float]:
    """KiB per hardened app that has served a request and idles, over 200 of them on one home."""
    script = f"""
import asyncio, gc, sys, tempfile
sys.path.insert(0, {str(Path(__file__).parent)!r})
import overhead
home = tempfile.mkdtemp()
def resident():
    gc.collect()
    return int(open('/proc/self/statm').read().split()[1]) * 4
async def main():
    kept = []
    for count in (20, 200):
        before = resident()
        for _ in range(count):
            kept.append(overhead.harden(overhead.bare(), {{"home": home, **{{name: {{}} for name in overhead.FIVE}}}}))
            await overhead.drive(kept[-1], 1)
        after = resident()
    print((after - before) / 200)
asyncio.run(main())
"""
    return {"idle_kib_per_app": float(subprocess.check_output([sys.executable, "-c", script]).split()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--only", default="", help="variants, comma-separated")
    parser.add_argument("--wrk", action="store_true", help="also behind uvicorn, under wrk")
    parser.add_argument("--seconds", type=int, default=5, help="of each wrk run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="deia-bench-"))
    try:
        measured = in_process(folder, arguments.rounds, arguments.requests, arguments.only)
        results: dict[str, Any] = {"in_process": measured}
        print(f"{'in-process':<24}{'CPU µs':>9}{'adds µs':>9}{'quietest':>9}{'x bare':>8}{'p99 µs':>9}")
        for name, row in results["in_process"].items():
            print(
                f"{name:<24}{row['cpu_us']:>9.1f}{row['adds_us']:>9.1f}{row['quiet_adds_us']:>9.1f}{row['of_bare']:>8.2f}{row['p99_us']:>9.1f}"
            )
        if not arguments.only:
            results.update(import_time())
            print(f"import beyond Starlette: {results['import_ms']:.0f} ms")
            results.update(idle_memory())
            print(f"memory of an idle app with all five: {results['idle_kib_per_app']:.0f} KiB")
        if arguments.wrk:
            if shutil.which("wrk") is None:
                print("wrk is not installed: the run behind uvicorn is left out")
            else:
                results["uvicorn"] = behind_uvicorn(folder, arguments.seconds)
                for name, row in results["uvicorn"].items():
                    print(f"{name:<24}{row['per_second']:>9.0f} requests/s {row['of_bare']:>7.1%} of bare")
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
