"""What hardening costs: process CPU per request, in-process and behind uvicorn, beside `BaseHTTPMiddleware`.

`python benchmarks/overhead.py [--rounds N] [--requests N] [--only NAMES] [--wrk] [--json FILE]`. Each variant has a
process of its own, in which it and the bare app take turns block by block, so that a noisy machine hits both alike.
What it adds is the median over the pairs of blocks of the serving thread's CPU, plus all CPU of all other threads
(journals' drain, checkpoints, everything in the background), none of which the bare app has. `of a middleware` sets
it against what one do-nothing `BaseHTTPMiddleware` added in the same run: a machine's speed cancels out there.
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
MIDDLEWARE = "BaseHTTPMiddleware"
FIVE = ("audit", "config", "degradation", "migration", "recovery")


class Nothing(BaseHTTPMiddleware):
    """What most people would write first, doing nothing."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


async def bot(request: Request) -> JSONResponse:
    return JSONResponse({"bot": request.path_params["bot"], "new": False})


async def flagged(request: Request) -> JSONResponse:
    """The same with a flag: in the bare app there is none to read."""
    return JSONResponse({"bot": request.path_params["bot"], "new": feature("new-scaling", default=False)})


def bare(middleware: int = 0, handler: Callable[[Request], Any] = bot) -> Starlette:
    routes = [Route(f"/api/r{n}", handler) for n in range(20)]
    routes.append(Route("/api/bots/{bot}/task", handler, methods=["GET", "POST"]))
    routes.append(Route("/api/pool/{bot}", handler))
    return Starlette(routes=routes, middleware=[Middleware(Nothing)] * middleware)


def who(scope: Any) -> Actor | None:
    """An actor resolver as people write it: a header, looked up."""
    for name, value in scope["headers"]:
        if name == b"x-user":
            return Actor("user", value.decode("latin-1"), auth="header")
    return None


candidate = bare(handler=flagged)


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
        bare(handler=flagged),
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
        MIDDLEWARE: lambda: bare(1),
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


async def _measure(name: str, folder: Path, rounds: int, requests: int) -> dict[str, float]:
    plain, app = bare(), variants(folder)[name]()
    async with contextlib.AsyncExitStack() as lifespans:
        if name == AT_WORK:  # an in-process version has a lifespan of its own, which needs an open one
            await lifespans.enter_async_context(running(app, {}))
            await begin_rollout(app)
        for each in (plain, app):
            await drive(each, 500)
            drained(each)
        cpu: list[tuple[float, float]] = []
        tails: list[tuple[float, float]] = []
        process, thread = time.process_time(), time.thread_time()
        for _ in range(rounds):
            gc.collect()
            begin = time.thread_time()
            times = await drive(plain, requests)
            between = time.thread_time()
            more = await drive(app, requests)
            drained(app)
            cpu.append((between - begin, time.thread_time() - between))
            tails.append((_p99(times), _p99(more)))
        behind = (time.process_time() - process) - (time.thread_time() - thread)
    serving = statistics.median(after - before for before, after in cpu) / requests * 1e6
    background = behind / (rounds * requests) * 1e6
    return {
        "bare_us": statistics.median(before for before, _ in cpu) / requests * 1e6,
        "adds_us": serving + background,
        "serving_us": serving,
        "background_us": background,
        "bare_p99_us": statistics.median(before for before, _ in tails),
        "p99_us": statistics.median(after for _, after in tails),
    }


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)] * 1e6


def in_process(folder: Path, rounds: int, requests: int, names: list[str]) -> dict[str, dict[str, float]]:
    """One process per variant; `BaseHTTPMiddleware` first and last, since the machine's speed may drift."""
    found: dict[str, dict[str, float]] = {}
    order = [name for name in names if name != MIDDLEWARE]
    for name in [MIDDLEWARE, *order, MIDDLEWARE]:
        command = [sys.executable, __file__, "--measure", name, "--folder", str(folder)]
        command += ["--rounds", str(rounds), "--requests", str(requests)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if ran.returncode:
            print(f"  {name}: left out", file=sys.stderr)
            continue
        row = json.loads(ran.stdout.splitlines()[-1])
        if name in found:
            row = {key: (value + found[name][key]) / 2 for key, value in row.items()}
        found[name] = row
    for row in found.values():
        row["of_middleware"] = row["adds_us"] / found[MIDDLEWARE]["adds_us"]
    return found


def behind_uvicorn(folder: Path, seconds: int, turns: int) -> dict[str, dict[str, float]]:
    """Requests per second under wrk, the variants in turns; server and wrk on a processor of their own each."""
    results: dict[str, list[float]] = {}
    mixed = folder / "mixed.lua"
    mixed.write_text(MIXED)
    for turn in range(turns):
        for name in ("bare", "core", "all five", AT_WORK, MIDDLEWARE):
            with _uvicorn(folder / f"wrk-{turn}-{name.replace(' ', '-')}", name) as port:
                command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(mixed), f"http://127.0.0.1:{port}"]
                out = subprocess.run(pinned(1, command), capture_output=True, text=True, check=True).stdout
                if "Non-2xx" in out:
                    raise RuntimeError(f"{name}: {out}")
                line = next(line for line in out.splitlines() if line.startswith("Requests/sec"))
                results.setdefault(name, []).append(float(line.split()[1]))
    shares = {name: [rate / base for rate, base in zip(rates, results["bare"], strict=True)]
              for name, rates in results.items()}  # fmt: skip
    return {
        name: {"per_second": statistics.median(rates), "of_bare": statistics.median(shares[name])}
        for name, rates in results.items()
    }


MIXED = """
local n = 0
request = function()
  n = n + 1
  local path = n % 2 == 0 and "/api/pool/b7" or "/api/bots/b7/task"
  return wrk.format("GET", path, {["x-user"] = "user-" .. n % 500})
end
"""


def pinned(processor: int, command: list[str]) -> list[str]:
    """The command on one processor, where the machine has more than one and `taskset` is there."""
    if (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        return command
    return ["taskset", "-c", str(processor), *command]


@contextlib.contextmanager
def _uvicorn(folder: Path, variant: str) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "BENCH_VARIANT": variant, "BENCH_HOME": str(folder)}
    command = [sys.executable, "-m", "uvicorn", "overhead:served", "--factory", "--port", str(port)]
    command += ["--log-level", "error", "--no-access-log"]
    process = subprocess.Popen(pinned(0, command), env=environment, cwd=Path(__file__).parent)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        warm = ["wrk", "-t1", "-c4", "-d1s", f"http://127.0.0.1:{port}/api/bots/b7/task"]
        subprocess.run(pinned(1, warm), capture_output=True, check=True)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def served() -> Any:
    """The app that uvicorn serves, by the variable BENCH_VARIANT."""
    name = os.environ["BENCH_VARIANT"]
    app = variants(Path(os.environ["BENCH_HOME"]))[name]()
    if name != AT_WORK:
        return app
    begun: list[Any] = []

    async def with_rollout(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not begun:
            begun.append(asyncio.get_running_loop().create_task(begin_rollout(app)))
        await app(scope, receive, send)

    return with_rollout


def import_time() -> dict[str, float]:
    """Milliseconds that `import deia_hardening` takes beyond Starlette."""
    script = (
        "import starlette.applications, time; t=time.perf_counter(); import deia_hardening; "
        "print((time.perf_counter()-t)*1000)"
    )
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # else each run would compile every module anew
    taken = [float(subprocess.check_output([sys.executable, "-c", script], env=compiled)) for _ in range(8)][1:]
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
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=600, help="of each block")
    parser.add_argument("--only", default="", help="variants, comma-separated; 'none' for the other parts alone")
    parser.add_argument("--wrk", action="store_true", help="also behind uvicorn, under wrk")
    parser.add_argument("--seconds", type=int, default=4, help="of each wrk run")
    parser.add_argument("--turns", type=int, default=3, help="wrk runs of each variant")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one variant, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(
            _measure(arguments.measure, arguments.folder, arguments.rounds, arguments.requests)
        )))  # fmt: skip
        return
    folder = Path(tempfile.mkdtemp(prefix="deia-bench-"))
    try:
        results: dict[str, Any] = {}
        if arguments.only != "none":
            names = arguments.only.split(",") if arguments.only else [n for n in variants(folder) if n != "bare"]
            results["in_process"] = in_process(folder, arguments.rounds, arguments.requests, names)
            print(f"{'in-process, per request':<24}{'adds µs':>9}{'serving':>9}{'behind':>9}"
                  f"{'of a middleware':>17}{'bare µs':>9}{'p99 µs':>9}{'bare p99':>9}")  # fmt: skip
            for name, row in results["in_process"].items():
                print(f"{name:<24}{row['adds_us']:>9.1f}{row['serving_us']:>9.1f}{row['background_us']:>9.1f}"
                      f"{row['of_middleware']:>17.2f}{row['bare_us']:>9.1f}{row['p99_us']:>9.1f}"
                      f"{row['bare_p99_us']:>9.1f}")  # fmt: skip
        if not arguments.only:
            results.update(import_time())
            print(f"import beyond Starlette: {results['import_ms']:.0f} ms")
            results.update(idle_memory())
            print(f"memory of an idle app with all five: {results['idle_kib_per_app']:.0f} KiB")
        if arguments.wrk:
            if shutil.which("wrk") is None:
                print("wrk is not installed: the run behind uvicorn is left out")
            else:
                results["uvicorn"] = behind_uvicorn(folder, arguments.seconds, arguments.turns)
                for name, row in results["uvicorn"].items():
                    print(f"{name:<24}{row['per_second']:>9.0f} requests/s {row['of_bare']:>7.1%} of bare")
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
