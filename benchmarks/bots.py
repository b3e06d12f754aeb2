"""One of three bots fails at 150 requests a second: what do the clients notice?

    python benchmarks/bots.py [--fault crash|500|hang] [--front ours|default|tuned|expert] [--seconds 15]

Three bot servers (10 ms of work each), one hardened service in front of them with default settings, all real
processes on one core; an open-loop generator on another. A third of the way in, bot `b` is killed, begins to answer
500 at once, or accepts and never answers. Reported: failed GETs, attempts per request, p99 after the fault, how often
the bad bot was asked since (probes included), and when it was ejected. To compare with, Envoy in three settings
(`envoy.py`), in the same place and with the same priority. Aim: 0 failed, at most 1.01 attempts per request, p99 at
most 75 ms, out within 300 ms (crash, 500) and 700 ms (hang).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import envoy
from openloop import Generator, Shot, lateness, pin, poisson, quantile, stolen

RATE = 150.0
WORK = 0.010
PATIENCE = 5.0
"""Seconds after which a client gives up."""
LATE = 0.010
"""A run whose generator was later than this (p99) is discarded …"""
STOLEN = 0.02
"""… and one in which the host took more than this part of the processors away."""

BOT = """
import asyncio, sys, time
mode = ["ok"]
asked = []
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path.startswith("/set/"):
        mode[0] = path[5:]
        body = b"ok"
    elif path == "/asked":
        import json
        body = json.dumps(asked).encode()
    else:
        asked.append(time.time())
        if mode[0] == "hang":
            await asyncio.sleep(3600)
        if mode[0] == "500":
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await asyncio.sleep(%r)
        body = b"done"
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})
""" % (WORK,)  # noqa: UP031 - the text is code with braces

FRONT = """
import json, os
from deia_hardening import harden
async def own(scope, receive, send):
    if scope["type"] == "http":
        from deia_degradation import DegradationManager
        from deia_hardening import current
        pool = current(DegradationManager).pool("bots")
        body = json.dumps([pool.calls, pool.attempts_made]).encode()
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})
app = harden(own, json.loads(os.environ["BENCH_SETTINGS"]))
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def serve(folder: Path, module: str, port: int, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), "--log-level", "warning",
        "--no-access-log", "--app-dir", str(folder),
    ]  # fmt: skip
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, preexec_fn=lambda: pin(0))


def wait_for(port: int) -> None:
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server on port {port} did not come up")


def fetch(port: int, path: str) -> bytes:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()  # type: ignore[no-any-return]


class Hardened:
    """Ours in front of the bots, at defaults."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder = folder
        bots = [{"id": bot, "upstream": f"http://127.0.0.1:{port}"} for bot, port in ports.items()]
        settings = {
            "home": str(folder / ".deia"),
            "degradation": {"pools": {"bots": {"bots": bots, "routes": ["/task"], "served_by": True}}},
        }
        self.port = free_port()
        self.process = serve(folder, "front", self.port, {"BENCH_SETTINGS": json.dumps(settings)})

    def attempts(self) -> tuple[int, int]:
        """Requests, and bots asked for them, so far."""
        calls, made = json.loads(fetch(self.port, "/figures"))
        return calls, made

    def out(self, since: float) -> float:
        """Seconds from `since` to the ejection of bot b; nan without one."""
        for line in (self.folder / ".deia" / "logs" / "degradation-events.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record.get("bot") == "b" and record.get("state") == "ejected":
                return datetime.fromisoformat(record["time"]).timestamp() - since
        return float("nan")


class Envoy:
    """Envoy in front of the bots."""

    def __init__(self, folder: Path, ports: dict[str, int], kind: str) -> None:
        self.port, self.admin = free_port(), free_port()
        self.process = envoy.start(
            folder, self.port, list(ports.values()), self.admin, lambda: pin(0), route=envoy.ROUTES[kind],
            cluster=envoy.CLUSTERS[kind],
        )  # fmt: skip

    def attempts(self) -> tuple[int, int]:
        stats = dict(line.rsplit(": ", 1) for line in fetch(self.admin, "/stats?filter=rq_total").decode().splitlines())
        return int(stats["http.bench.downstream_rq_total"]), int(stats["cluster.app.upstream_rq_total"])

    def out(self, since: float) -> float:
        return float("nan")  # Envoy does not say when


def run(front_kind: str, fault: str, seconds: float, seed: int) -> dict[str, float]:
    """One run; the figures by name."""
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bot.py").write_text(BOT)
        (folder / "front.py").write_text(FRONT)
        ports = {bot: free_port() for bot in "abc"}
        try:
            servers = {bot: serve(folder, "bot", port) for bot, port in ports.items()}
            processes += servers.values()
            front = Hardened(folder, ports) if front_kind == "ours" else Envoy(folder, ports, front_kind)
            processes.append(front.process)
            for port in (*ports.values(), front.port):
                wait_for(port)
            request = b"GET /task HTTP/1.1\r\nhost: bench\r\n\r\n"
            warm = Generator(front.port, {"get": request}, PATIENCE)
            asyncio.run(warm.run(poisson(50.0, 1.0, {"get": 1.0}, 1)))
            shots = poisson(RATE, seconds, {"get": 1.0}, seed)
            at = seconds / 3
            broken: list[float] = []

            async def drive() -> None:
                generator = Generator(front.port, {"get": request}, PATIENCE)
                task = asyncio.create_task(generator.run(shots))
                await asyncio.sleep(at)
                broken.append(time.time())
                if fault == "crash":
                    servers["b"].send_signal(signal.SIGKILL)
                else:
                    await asyncio.to_thread(fetch, ports["b"], f"/set/{fault}")
                await task

            calls, made = front.attempts()
            steal = stolen()
            asyncio.run(drive())
            lost = stolen(steal)[0]
            asked = [] if fault == "crash" else json.loads(fetch(ports["b"], "/asked"))
            now = front.attempts()
            return {
                **told(shots, at),
                "attempts": (now[1] - made) / (now[0] - calls),
                "ejected after": front.out(broken[0]) * 1000,
                "asked since": sum(one >= broken[0] for one in asked) if asked else float("nan"),
                "lateness": lateness(shots) * 1000,
                "stolen %": lost * 100,
            }
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def told(shots: list[Shot], at: float) -> dict[str, float]:
    """What the clients saw; the fault came at `at`."""
    statuses = Counter(shot.status for shot in shots if shot.status != 200)
    later = [shot.took for shot in shots if shot.due >= at and shot.status == 200]
    earlier = [shot.took for shot in shots if shot.due < at and shot.status == 200]
    return {
        "requests": len(shots),
        "failed": sum(statuses.values()),
        **{f"status {status}": count for status, count in sorted(statuses.items())},
        "p99 before": quantile(earlier, 0.99) * 1000,
        "p99 after": quantile(later, 0.99) * 1000,
        "max after": max(later, default=float("nan")) * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=["crash", "500", "hang"], action="append")
    parser.add_argument("--front", choices=["ours", *envoy.ROUTES], action="append")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tries", type=int, default=3, help="how often a run that does not count is made again")
    options = parser.parse_args()
    pin(1)
    fronts = options.front or ["ours", *(envoy.ROUTES if envoy.binary() else ())]
    print(f"3 bots of {WORK * 1000:.0f} ms, {RATE:.0f} requests/s, seed {options.seed}; times in ms")
    for front in fronts:
        for fault in options.fault or ["crash", "500", "hang"]:
            for _ in range(options.tries):
                figures = run(front, fault, options.seconds, options.seed)
                late = figures["lateness"] > LATE * 1000 or figures["stolen %"] > STOLEN * 100
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                mark = "   DISCARDED: the generator or the machine was late" if late else ""
                print(f"{front:8} {fault:6} {text}{mark}", flush=True)
                if not late:
                    break


if __name__ == "__main__":
    main()
