"""What a switch of versions costs: the layer per request, and requests lost while versions are switched under load.

    python benchmarks/migration.py cost
    python benchmarks/migration.py switch [--switchovers 10] [--rolls 2] [--servers ours uvicorn granian nginx]

`cost` measures the layer alone around a do-nothing app, in one process. `switch` starts `deia-hardening run` with two
workers, keeps it under load (GET and POST over keep-alive and fresh connections, streams, WebSockets), switches the
version that answers (the app itself and a process beside it, in turn), and replaces the workers themselves. Beside it
uvicorn and granian reload their workers, and nginx its configuration, under the same load: the equal operations without
this package. Long campaigns run in slices that add up in a `--tally` file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from switching import APP, Load, free_port, get, server, up

from deia_hardening.context import RequestContext
from deia_hardening.control.client import Client, NotRunning
from deia_hardening.problem import Problem
from deia_hardening.routing import Routes
from deia_migration.choose import Chooser
from deia_migration.middleware import Rules, SplitLayer
from deia_migration.outcome import BodyRules
from deia_migration.sessions import SessionTable
from deia_migration.settings import MigrationSettings
from deia_migration.split import Split
from deia_migration.traffic import Live, Router, Version

# -- the layer alone ----------------------------------------------------------------------------------------------


class NoRevision:
    effects: Routes[bool] = Routes([])
    long: Routes[bool] = Routes([])


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """A do-nothing app."""


HEADERS = [
    (b"host", b"shop.example"),
    (b"user-agent", b"bench"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"content-type", b"application/json"),
    (b"content-length", b"100"),
    (b"authorization", b"Bearer abc"),
]


async def per_call(app: Any, headers: list[tuple[bytes, bytes]], number: int = 50_000) -> float:
    """Microseconds per call, the best of five."""
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/x", "headers": headers, "client": ("10.0.0.1", 1),
        "query_string": b"",
    }  # fmt: skip
    now = time.monotonic()
    context = RequestContext(nothing, nothing, scope=scope, revision=NoRevision, received=now)  # type: ignore[arg-type]
    context.status, context.complete, context.started = 200, True, now
    scope["deia_hardening"] = context
    best = 1e9
    for _ in range(5):
        began = time.process_time()
        for _ in range(number):
            await app(scope, nothing, nothing)
        best = min(best, (time.process_time() - began) / number * 1e6)
    return best


async def cost() -> None:
    settings = MigrationSettings()
    with tempfile.TemporaryDirectory() as folder:
        table = SessionTable(Path(folder, "sessions"), 65_536)
        table.open()
        router = Router()
        page = object()
        router.state = lambda: page
        router.seen = page
        candidate = Version("v2", 5, nothing)
        candidate.ready = True
        told: list[Any] = []
        rules = Rules(Chooser(settings, table), BodyRules(settings.failure), frozenset(), True)
        layer = SplitLayer(nothing, router, rules, lambda outcome: told.clear())
        keyed = [*HEADERS, (b"x-conversation-id", b"conversation-1234")]
        bare = await per_call(nothing, HEADERS)
        print(f"a do-nothing app: {bare:.2f} µs; added by the layer, in µs of CPU per request:")
        rows: list[tuple[str, float | None, list[tuple[bytes, bytes]]]] = [
            ("no rollout", None, HEADERS),
            ("rollout at 10%, sticky key, answered by old", 0.1, keyed),
            ("rollout at 10%, no key (blocks)", 0.1, HEADERS),
            ("rollout at 100%, answered by new (shield and outcome included)", 1.0, keyed),
            ("rollout at 10%, with a session id", 0.1, [*HEADERS, (b"mcp-session-id", b"0123456789abcdef")]),
        ]
        for name, weight, headers in rows:
            router.live = (
                None
                if weight is None
                else Live(rollout="r", split=Split("r"), weight=weight, stable=router.app, candidate=candidate)
            )
            print(f"  {name:66} {await per_call(layer, headers) - bare:6.2f}")
        live = router.live
        assert live is not None
        began, number = time.process_time(), 200_000
        for _ in range(number):
            live.split.new(b"conversation-1234", 0.1)
        print(
            f"  {'of that, the split itself (SHA-256, compare)':66} {(time.process_time() - began) / number * 1e6:6.2f}"
        )
        table.close()


# -- real servers ---------------------------------------------------------------------------------------------------

FRONT = """
from deia_hardening import harden
from bench_old import app
app = harden(app, {"home": HOME, "migration": {
    "versions": {"v2": {"target": "process:bench_new:app", "folder": FOLDER}},
    "plan": {"steps": [], "bake": "0s", "holdback": "0%", "promote": "timed", "limits": {"drain": "5s"}},
    "tick": "50ms"}})
"""

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log; worker_processes 2; user root;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    map $http_upgrade $upgrading {{ default upgrade; "" ""; }}
    upstream version {{ server unix:{folder}/{version}.sock; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://version; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrading;
        }}
    }}
}}
"""


def write(folder: Path) -> None:
    (folder / "bench_old.py").write_text(APP)
    (folder / "bench_new.py").write_text(APP.replace('NAME = "old"', 'NAME = "new"'))
    front = FRONT.replace("HOME", json.dumps(str(folder / ".deia"))).replace("FOLDER", json.dumps(str(folder)))
    (folder / "bench_front.py").write_text(front)


@contextlib.asynccontextmanager
async def loaded(port: int, name: str, switches: int, tally: Path | None) -> AsyncIterator[None]:
    """Clients of every kind around a block; then what they counted."""
    await up(port)
    load = Load(port)
    running = asyncio.create_task(load.run())
    began = time.monotonic()
    try:
        yield
    except BaseException:
        switches = 0  # what was lost until a switchover failed counts all the same
        raise
    finally:
        load.stop()
        await running
        load.report(name, switches, time.monotonic() - began, tally)


async def ours(switchovers: int, rolls: int, seconds: float, tally: Path | None) -> None:
    """Versions switched in turn, and the front's own workers replaced `rolls` times in between."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        write(folder)
        command = ("deia_hardening.cli", "run", "bench_front:app", "--port", str(port), "--workers", "2")
        async with (
            server(folder, *command, "--log-level", "warning"),
            loaded(port, "deia-hardening run", switchovers + rolls, tally),
        ):
            client = Client(folder / ".deia", timeout=60)
            due = {round((number + 1) * switchovers / rolls) - 1 for number in range(rolls)} if rolls else set()
            for number in range(switchovers):
                await migrate(client, "v2" if number % 2 == 0 else "app", port)
                if number in due:
                    await asyncio.to_thread(list, client.follow("service.restart", {}, changes=True, reason="bench"))
                await asyncio.sleep(seconds)


async def migrate(client: Client, to: str, port: int) -> None:
    asked = 0
    while True:  # the socket's owner may just be replaced: another worker answers there a moment later
        asked += 1
        try:
            await asyncio.to_thread(client.call, "migration.start", {"version": to}, changes=True, reason="bench")
            break
        except NotRunning:
            if asked > 200:
                raise
            await asyncio.sleep(0.05)
        except Problem:
            if asked == 1:
                raise
            break  # the one before had begun it, and its answer was lost
    status: Any = {"phase": ""}
    for _ in range(1_200):
        with contextlib.suppress(NotRunning):
            status = await asyncio.to_thread(client.call, "migration.status", {}, changes=False)
        if status["phase"] in ("done", "rolled-back"):
            break
        await asyncio.sleep(0.05)
    if status["phase"] != "done":
        raise SystemExit(f"the switchover to {to} did not end well: {status}")
    assert await get(port, "/") == ("new" if to == "v2" else "old")


async def beside(name: str, switchovers: int, seconds: float, tally: Path | None) -> None:
    """uvicorn or granian reloading their workers: the equal of replacing the front."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        write(folder)
        commands = {
            "uvicorn": ("uvicorn", "bench_old:app", "--port", str(port), "--workers", "2", "--no-access-log"),
            "granian": ("granian", "bench_old:app", "--interface", "asgi", "--port", str(port), "--workers", "2"),
        }
        async with (
            server(folder, *commands[name]) as process,
            loaded(port, f"{name} reloading its workers", switchovers, tally),
        ):
            for _ in range(switchovers):
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(seconds + 3)


@contextlib.asynccontextmanager
async def both_up(folder: Path) -> AsyncIterator[None]:
    """Wait until both versions behind nginx answer."""
    for version in ("old", "new"):
        for _ in range(600):
            try:
                _, writer = await asyncio.open_unix_connection(str(folder / f"{version}.sock"))
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
    yield


async def nginx(switchovers: int, seconds: float, tally: Path | None) -> None:
    """nginx in front of two uvicorns, its configuration switched from one to the other and reloaded."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        print("nginx: not installed, skipped (apt-get install nginx-light)")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        folder.chmod(0o755)
        write(folder)
        config = folder / "nginx.conf"

        def point(version: str) -> None:
            config.write_text(NGINX.format(folder=folder, port=port, version=version))

        point("old")
        uvicorns = [
            (
                "uvicorn",
                f"bench_{version}:app",
                "--uds",
                str(folder / f"{version}.sock"),
                "--no-access-log",
                "--timeout-keep-alive",
                "75",
            )
            for version in ("old", "new")
        ]
        async with (
            server(folder, *uvicorns[0]),
            server(folder, *uvicorns[1]),
            both_up(folder),
            server(folder, program, "-c", str(config), "-e", str(folder / "start.log")) as process,
            loaded(port, "nginx reloading its configuration", switchovers, tally),
        ):
            for number in range(switchovers):
                point("new" if number % 2 == 0 else "old")
                process.send_signal(signal.SIGHUP)
                await asyncio.sleep(seconds + 3)


async def switch(arguments: argparse.Namespace) -> None:
    number, seconds, tally = arguments.switchovers, arguments.seconds, arguments.tally
    for name in arguments.servers:
        if name == "ours":
            await ours(number, arguments.rolls, seconds, tally)
        elif name == "nginx":
            await nginx(number, seconds, tally)
        else:
            await beside(name, number, seconds, tally)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("cost", "switch"))
    parser.add_argument("--switchovers", type=int, default=10)
    parser.add_argument("--rolls", type=int, default=2, help="how often the front itself is replaced on top")
    parser.add_argument("--seconds", type=float, default=1.0, help="between two switchovers")
    parser.add_argument("--servers", nargs="+", default=["ours"], choices=("ours", "uvicorn", "granian", "nginx"))
    parser.add_argument("--tally", type=Path, help="file in which slices of a long campaign add up")
    arguments = parser.parse_args()
    asyncio.run(cost() if arguments.what == "cost" else switch(arguments))


if __name__ == "__main__":
    main()
