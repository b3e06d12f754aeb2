"""One of three bots fails at 150 requests a second: what do the clients notice?

    python benchmarks/bots.py [--fault crash|500|hang] [--seconds 15]

Three bot servers (10 ms of work each), one hardened service in front of them with default settings, all real
processes on one core; an open-loop generator on another. A third of the way in, bot `b` is killed, begins to answer
500 at once, or accepts and never answers. Reported: failed GETs, attempts per request, p99 after the fault, how long
the bad bot went on being asked, and when it was ejected. Aim: 0 failed, at most 1.01 attempts per request, p99 at most
75 ms, out within 300 ms (crash, 500) and 700 ms (hang).
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
from openloop import Generator, lateness, pin, poisson, quantile

RATE = 150.0
WORK = 0.010
LATE = 0.010
"""A run whose generator was later than this (p99) is discarded."""

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


def run(fault: str, seconds: float, seed: int) -> dict[str, float]:
    """One run; the figures by name."""
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bot.py").write_text(BOT)
        (folder / "front.py").write_text(FRONT)
        ports = {bot: free_port() for bot in "abc"}
        bots = [{"id": bot, "upstream": f"http://127.0.0.1:{port}"} for bot, port in ports.items()]
        settings = {
            "home": str(folder / ".deia"),
            "degradation": {"pools": {"bots": {"bots": bots, "routes": ["/task"], "served_by": True}}},
        }
        try:
            servers = {bot: serve(folder, "bot", port) for bot, port in ports.items()}
            processes += servers.values()
            front = free_port()
            processes.append(serve(folder, "front", front, {"BENCH_SETTINGS": json.dumps(settings)}))
            for port in (*ports.values(), front):
                wait_for(port)
            request = b"GET /task HTTP/1.1\r\nhost: bench\r\n\r\n"
            warm = Generator(front, {"get": request}, 10.0)
            asyncio.run(warm.run(poisson(50.0, 1.0, {"get": 1.0}, 1)))
            calls, made = json.loads(fetch(front, "/figures"))
            shots = poisson(RATE, seconds, {"get": 1.0}, seed)
            at = seconds / 3
            broken: list[float] = []

            async def drive() -> None:
                generator = Generator(front, {"get": request}, 10.0)
                task = asyncio.create_task(generator.run(shots))
                await asyncio.sleep(at)
                broken.append(time.time())
                if fault == "crash":
                    servers["b"].send_signal(signal.SIGKILL)
                else:
                    await asyncio.to_thread(fetch, ports["b"], f"/set/{fault}")
                await task

            before = json.loads(fetch(ports["b"], "/asked")) if fault == "crash" else []
            asyncio.run(drive())
            asked = {
                bot: json.loads(fetch(port, "/asked"))
                for bot, port in ports.items()
                if not (fault == "crash" and bot == "b")
            }
            now = json.loads(fetch(front, "/figures"))
            attempts = (now[1] - made) / (now[0] - calls)
            last = max((one for one in asked.get("b", before) if one >= broken[0]), default=broken[0])
            events = (folder / ".deia" / "logs" / "degradation-events.jsonl").read_text().splitlines()
            out = float("nan")
            restored = 0
            for line in map(json.loads, events):
                if line.get("bot") == "b" and line.get("state") == "ejected" and out != out:
                    out = datetime.fromisoformat(line["time"]).timestamp() - broken[0]
                restored += line.get("bot") == "b" and line.get("state") == "restored"
            statuses = Counter(shot.status for shot in shots if shot.status != 200)
            failed = sum(shot.status != 200 for shot in shots)
            later = [shot.took for shot in shots if shot.due >= at and shot.status == 200]
            earlier = [shot.took for shot in shots if shot.due < at and shot.status == 200]
            return {
                "requests": len(shots),
                "failed": failed,
                **{f"status {status}": count for status, count in sorted(statuses.items())},
                "attempts": attempts,
                "p99 before": quantile(earlier, 0.99) * 1000,
                "p99 after": quantile(later, 0.99) * 1000,
                "max after": max(later) * 1000,
                "ejected after": out * 1000,
                "last asked": (last - broken[0]) * 1000 if fault != "crash" else float("nan"),
                "lateness": lateness(shots) * 1000,
            }
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=["crash", "500", "hang"], action="append")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    pin(1)
    print(f"3 bots of {WORK * 1000:.0f} ms, {RATE:.0f} requests/s, seed {options.seed}; times in ms")
    for fault in options.fault or ["crash", "500", "hang"]:
        figures = run(fault, options.seconds, options.seed)
        late = figures["lateness"] > LATE * 1000
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{fault:6} {text}{'   DISCARDED: the generator was late' if late else ''}", flush=True)


if __name__ == "__main__":
    main()
