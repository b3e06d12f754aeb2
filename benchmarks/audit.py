"""What the audit trail costs and how fast it is verified and searched, side by side with what people do instead.

`python benchmarks/audit.py [requests] [verify] [query] [make] [--records N] [--home FOLDER] [--compressed]`

`make` only makes the log at `--home`, for later runs, or lets it grow to more records: 10 million take some 15 minutes
and 10 GB.

- requests: loop time and process CPU (the background thread's drain included) per request over the bare app, beside a
  JSON-lines `BaseHTTPMiddleware` and, where it is installed, auditchain (which never syncs: its records are not on
  disk when it returns).
- verify: records a second of a whole verification, on all cores.
- query: a filtered page of 100, warm: p50 and p99; the sizes of index and tiles beside the log's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.query.grammar import parse_query
from deia_audit.query.index import build
from deia_audit.query.search import Search
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_audit.verify import verify
from deia_hardening import harden
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import JournalReader, JournalSettings, open_journal
from deia_hardening.settings import Bytes

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/bots/b7",
    "raw_path": b"/bots/b7",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"service"), (b"user-agent", b"bench/1"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip")],
    "client": ("127.0.0.1", 4711),
    "server": ("127.0.0.1", 80),
}


async def answer(request: Any) -> PlainTextResponse:
    return PlainTextResponse("ok")


def bare() -> Starlette:
    return Starlette(routes=[Route("/bots/{bot_id}", answer)])


class JsonLines(BaseHTTPMiddleware):
    """What people write: a line of JSON per request, flushed to the operating system, chained to nothing."""

    def __init__(self, app: Any, path: Path) -> None:
        super().__init__(app)
        self.file = path.open("a", buffering=1)

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        start = time.perf_counter()
        response = await call_next(request)
        line = {
            "time": time.time(),
            "method": request.method,
            "path": request.url.path,
            "status": response.status_code,
            "ms": (time.perf_counter() - start) * 1000,
        }
        self.file.write(json.dumps(line) + "\n")
        return response


class AuditChain:
    """auditchain behind a plain ASGI layer: hash-chained JSON lines, closed after each one and never synced."""

    def __init__(self, app: Any, path: Path) -> None:
        from auditchain import AuditLog, JsonlBackend

        self.app = app
        self.log = AuditLog(JsonlBackend(path))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 0
        start = time.perf_counter()

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await self.app(scope, receive, watched)
        detail = {"status": status, "ms": (time.perf_counter() - start) * 1000, "ip": scope["client"][0]}
        await self.log.append("anonymous", f"{scope['method']} {scope['path']}", "bot:b7", metadata=detail)


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    return None


async def load(app: Any, count: int) -> tuple[float, float]:
    """Loop time and process CPU per request in µs: the best of several rounds for the first, all for the second."""
    for _ in range(300):
        await app(dict(SCOPE), receive, send)
    await asyncio.sleep(1.0)
    rounds = []
    cpu = time.process_time()
    per_round = count // 20
    for _ in range(20):
        start = time.thread_time()
        for _ in range(per_round):
            await app(dict(SCOPE), receive, send)
        rounds.append((time.thread_time() - start) / per_round * 1e6)
        await asyncio.sleep(0)
    await asyncio.sleep(1.5)  # the writer and the checkpoints finish: their time counts
    return min(rounds), (time.process_time() - cpu) / count * 1e6


def bench_requests(count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deia-bench-"))
    lines = Starlette(routes=[Route("/bots/{bot_id}", answer)])
    lines.add_middleware(JsonLines, path=folder / "lines.jsonl")
    apps: dict[str, Any] = {
        "bare": bare(),
        "core alone": harden(bare(), {"home": str(folder / "core")}),
        "audit": harden(bare(), {"home": str(folder / "audit"), "audit": {}}),
        "JSON lines, BaseHTTPMiddleware": lines,
    }
    try:
        apps["auditchain (never syncs)"] = AuditChain(bare(), folder / "auditchain.jsonl")
    except ImportError:
        print("auditchain is not installed (pip install auditchain) and was left out")
    base = (0.0, 0.0)
    print(f"{'':34} loop µs over bare   CPU µs over bare   ({count} requests)")
    for name, app in apps.items():
        found = asyncio.run(load(app, count))
        base = found if name == "bare" else base
        print(f"{name:34} {found[0] - base[0]:17.2f} {found[1] - base[1]:18.2f}")
    shutil.rmtree(folder)


def make_log(home: Path, count: int, *, compressed: bool) -> Layout:
    """A log of `count` records of 600 bytes, written through the journal and sealed; what is there already stays."""
    layout = Layout.of(home)
    have = Checkpoint.parse(layout.checkpoint.read_bytes()).head.size if layout.checkpoint.exists() else 0
    if have < count:
        write_log(layout, have, count, compressed=compressed)
    start = time.perf_counter()
    for segment in JournalReader(layout.log).segments():
        if not segment.live:
            build(segment, layout.index, layout.keys)
    print(f"{count} records written, sealed and indexed; the index took {time.perf_counter() - start:.0f} s")
    return layout


def write_log(layout: Layout, have: int, count: int, *, compressed: bool) -> None:
    layout.log.parent.mkdir(parents=True, exist_ok=True)
    settings = JournalSettings(
        compression="gzip" if compressed else "none",
        max_records=400_000,
        max_bytes=Bytes("1GiB"),
        retain_bytes=Bytes(0),
    )
    journal = open_journal(layout.log, settings, clock=SYSTEM_CLOCK)
    sealer = Sealer(layout, journal, "bench.example", EpochPolicy(1_000_000, 1e9), SYSTEM_CLOCK)
    journal.on_batch(sealer.written, sealer.synced)
    sealer.open()
    chance = random.Random(have)
    statuses = [200] * 90 + [404] * 6 + [500] * 3 + [503]
    filler = "x"
    for number in range(have, count):
        bot = chance.randrange(1000)
        journal.append_body(
            b'"id":"018f0000-0000-7000-8000-%012x","kind":"http","stage":"result","action":"POST /api/bots/{id}/task",'
            b'"op":"create","outcome":"success","level":"info","http":{"method":"POST","status":%d,'
            b'"path":"/api/bots/b%d/task",'
            b'"ms":1.234,"bytes":512},"actor":{"type":"user","id":"user-%d"},"src":{"ip":"10.0.%d.%d","ua":"bench/1"},'
            b'"mode":"FULL","target":{"type":"bot","id":"b%d"},"trace":"%032x","note":"%b","mono":1,"boot":"00000000","worker":1'
            % (
                number, chance.choice(statuses), bot, chance.randrange(5000), bot % 200, bot % 250, bot,
                chance.getrandbits(128), filler.encode(),
            )
        )  # fmt: skip
        if number % 100_000 == 99_999:
            journal.drain(120)
            sealer.tick()
    journal.drain(120)
    sealer.finish()
    journal.close()


def bench_verify(layout: Layout) -> None:
    size = sum(segment.size for segment in JournalReader(layout.log).segments())
    verify(layout)  # the log comes from the disk once; what is measured is the verification
    start = time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time()
    report = verify(layout)
    seconds = time.perf_counter() - start
    own = time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = own + after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"verify: {report.verdict} {report.records} records of {size / report.records:.0f} bytes in {seconds:.2f} s, "
        f"{report.records / seconds:,.0f} records/s on {os.cpu_count()} cores, "
        f"{spent / report.records * 1e6:.2f} µs of CPU a record (peak {peak:.0f} MiB)"
    )
    assert report.verdict.ok, report


def bench_query(layout: Layout) -> None:
    checkpoint = Checkpoint.parse(layout.checkpoint.read_bytes())
    log = sum(segment.size for segment in JournalReader(layout.log).segments())
    index = sum(path.stat().st_size for path in layout.index.glob("*")) if layout.index.exists() else 0
    tiles = sum(path.stat().st_size for path in layout.evidence.rglob("*") if path.is_file())
    share = (index + tiles) / log
    print(f"index {index / 1e6:.0f} MB + tiles {tiles / 1e6:.0f} MB = {share:.0%} of the log's {log / 1e6:.0f} MB")
    search = Search(layout, lambda: checkpoint)
    start = time.perf_counter()
    search.run(parse_query([("actor", "nobody")], most=1000, now_ns=time.time_ns()))
    print(f"the first query of a process took {(time.perf_counter() - start) * 1000:.0f} ms")
    while search.advance():  # as the service does beside its queries
        pass
    for text in (
        "actor=user-77",
        "status=500..599",
        "target=bot:b7",
        "action=POST*&status=404",
        "q=b77",
        "ip=10.0.7.0/24",
    ):
        query = parse_query([part.partition("=")[::2] for part in text.split("&")], most=1000, now_ns=time.time_ns())
        rows = len(search.run(query).rows)
        for _ in range(5):
            search.run(query)
        times = []
        for _ in range(100):
            start = time.perf_counter()
            search.run(query)
            times.append((time.perf_counter() - start) * 1000)
        times.sort()
        print(f"page of {rows:3} for {text:26} p50 {statistics.median(times):6.2f} ms  p99 {times[98]:6.2f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{checkpoint.head.size} records, peak memory {peak:.0f} MiB")
    search.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["requests", "verify", "query"])
    parser.add_argument("--records", type=int, default=300_000, help="records in the log")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--home", type=Path, help="where the log is made, or was made before; it is kept")
    parser.add_argument("--compressed", action="store_true", help="compress sealed segments")
    options = parser.parse_args()
    if "requests" in options.what:
        bench_requests(options.requests)
    if {"verify", "query", "make"} & set(options.what):
        home = options.home or Path(tempfile.mkdtemp(prefix="deia-bench-")) / "home"
        layout = make_log(home, options.records, compressed=options.compressed)
        if "verify" in options.what:
            bench_verify(layout)
        if "query" in options.what:
            bench_query(layout)
        if options.home is None:
            shutil.rmtree(home.parent)


if __name__ == "__main__":
    main()
