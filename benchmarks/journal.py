"""The journal beside the alternatives, on this disk: CPU per record, durable records a second, memory, start-up.

    python benchmarks/journal.py [--quick] [--folder DIR] [--slower MS]

Durable throughput is set against the bare `write` + `fdatasync` of batches of the same size on the same file
system in the same run: each line prints both, and the CPU that a record took. A batch is whole when its last record
was numbered, hashed and queued, so with N in flight the share of the ceiling ends at sync / (sync + N x CPU):
`--slower` adds a pause to every fdatasync of both sides, as a disk of another machine would.
Alternatives that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import logging
import logging.handlers
import os
import platform
import queue
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deia_hardening.journal import Journal, JournalReader, JournalSettings, encode_event, live, open_journal

EVENT = {
    "kind": "http", "action": "POST /bots/{bot_id}/tasks", "actor": {"type": "user", "id": "u-20391", "auth": "token"},
    "src": {"ip": "192.0.2.17", "ua": "curl/8.5.0"}, "target": {"type": "bot", "id": "b-77"}, "outcome": "ok",
    "http": {"method": "POST", "path": "/bots/b-77/tasks", "status": 202, "ms": 3.2, "bytes": 512},
    "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "mode": "FULL", "version": "stable",
}  # fmt: skip
BODY = encode_event(EVENT)
BODY += b',"pad":"' + b"x" * max(0, 600 - len(BODY) - 140) + b'"'
LINE = 600


def file_system(folder: Path) -> str:
    best = ("?", "?")
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _device, where, kind = line.split()[:3]
            if str(folder.resolve()).startswith(where) and len(where) >= len(best[1]) - 1:
                best = (kind, where)
    except OSError:
        pass
    return best[0]


def synced(descriptor: int) -> None:
    """fdatasync, and the pause of `--slower`."""
    os.fdatasync(descriptor)
    if slower:
        time.sleep(slower)


slower = 0.0


def bare(folder: Path, size: int, seconds: float) -> list[float]:
    """Seconds of each write of `size` bytes + fdatasync, appended to a file of its own."""
    path = folder / "bare"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    data = b"x" * size
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        os.write(descriptor, data)
        synced(descriptor)
        times.append(time.perf_counter() - start)
    os.close(descriptor)
    path.unlink()
    return times


def cpu(name: str, records: int, write: Callable[[], object], finish: Callable[[], object]) -> None:
    """CPU of the calls on this thread, and of the whole process up to the end of writing."""
    gc.collect()
    thread, process = time.thread_time(), time.process_time()
    for _ in range(records):
        write()
    thread_used = time.thread_time() - thread
    finish()
    used = time.process_time() - process
    print(f"  {name:<44} {thread_used / records * 1e6:6.2f} µs caller {used / records * 1e6:8.2f} µs in all")


def paced(journal: Journal, records: int, chunk: int) -> None:
    """As a service writes: in bursts, the writer working beside."""
    for _ in range(records // chunk):
        for _ in range(chunk):
            journal.append_body(BODY)
        time.sleep(0.004)
    journal.drain()


def cpu_table(folder: Path, records: int) -> None:
    print(f"\nCPU per record of {LINE} bytes ({records} records)")
    journal = open_journal(folder / "a.jsonl", JournalSettings(reserve=0, max_records=10**7, max_bytes=1 << 33))
    cpu("journal append_body, batch, all at once", records, lambda: journal.append_body(BODY), journal.drain)
    cpu("journal append(dict), batch, all at once", records, lambda: journal.append(EVENT), journal.drain)
    before = time.process_time()
    paced(journal, records, 100)
    print(
        f"  {'journal append_body, batch, bursts of 100':<44} {'':6}           "
        f"{(time.process_time() - before) / records * 1e6:8.2f} µs in all"
    )
    journal.close()

    logger = logging.getLogger("bench")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler: logging.Handler = logging.handlers.RotatingFileHandler(
        folder / "log.txt", maxBytes=64 << 20, backupCount=2
    )
    logger.handlers = [handler]
    cpu("logging RotatingFileHandler (no fsync)", records // 10, lambda: logger.info(json.dumps(EVENT)), handler.close)
    waiting: queue.SimpleQueue[object] = queue.SimpleQueue()
    behind = logging.FileHandler(folder / "log2.txt")
    listener = logging.handlers.QueueListener(waiting, behind)  # type: ignore[arg-type]
    logger.handlers = [logging.handlers.QueueHandler(waiting)]  # type: ignore[arg-type]
    listener.start()
    cpu(
        "logging QueueHandler + listener (no fsync)",
        records // 10,
        lambda: logger.info(json.dumps(EVENT)),
        listener.stop,
    )
    logger.handlers = []
    try:
        import structlog
    except ImportError:
        print("  structlog is not installed")
    else:
        with open(folder / "structlog.txt", "wb") as file:
            log = structlog.wrap_logger(
                structlog.BytesLogger(file),
                processors=[structlog.processors.TimeStamper(fmt="iso", utc=True),
                            structlog.processors.JSONRenderer(serializer=lambda *a, **k: json.dumps(*a, **k).encode())],
            )  # fmt: skip
            fields = {key: value for key, value in EVENT.items() if key != "kind"}
            cpu(
                "structlog to a file (no hash, no fsync)", records // 10, lambda: log.info("http", **fields), file.flush
            )
    auditchain()


def auditchain() -> None:
    """The peer whose appends are in `benchmarks/audit.py`; here only whether it is there."""
    found = importlib.util.find_spec("auditchain") is not None
    print("  auditchain is compared in benchmarks/audit.py" if found else "  auditchain is not installed")


async def in_flight(journal: Journal, tasks: int, seconds: float) -> int:
    end = time.perf_counter() + seconds
    done = 0

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await journal.append_body(BODY).durable()
            done += 1

    await asyncio.gather(*(work() for _ in range(tasks)))
    return done


def windowed(journal: Journal, window: int, seconds: float) -> int:
    """One thread that keeps `window` records in flight: waits for the older half, sends as many again."""
    end = time.perf_counter() + seconds
    half = max(1, window // 2)
    waiting = [journal.append_body(BODY) for _ in range(window)]
    done = 0
    while time.perf_counter() < end:
        waiting[half - 1].wait()
        done += half
        del waiting[:half]
        waiting += [journal.append_body(BODY) for _ in range(half)]
    journal.drain()
    return done


async def handed_over(folder: Path, tasks: int, seconds: float) -> int:
    """The least that a loop can do: bare futures, one thread that writes and syncs, one call back per batch."""
    descriptor = os.open(folder / "least", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    loop, waiting, bell = asyncio.get_running_loop(), [], threading.Semaphore(0)
    end = time.perf_counter() + seconds
    done = 0

    def resolve(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)

    def write() -> None:
        while bell.acquire() and waiting:
            batch = waiting[:]
            del waiting[: len(batch)]
            os.write(descriptor, b"x" * LINE * len(batch))
            synced(descriptor)
            loop.call_soon_threadsafe(resolve, batch)

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            future = loop.create_future()
            waiting.append(future)
            if len(waiting) == 1:
                bell.release()
            await future
            done += 1

    thread = threading.Thread(target=write)
    thread.start()
    await asyncio.gather(*(work() for _ in range(tasks)))
    bell.release()
    thread.join()
    os.close(descriptor)
    return done


def durable_table(folder: Path, seconds: float) -> None:
    """Short slices of both in turn, so that both meet the same disk; the medians of the slices are compared."""
    print("\nDurable records a second (durability: sync), beside bare write+fdatasync of batches of the same size")
    threads = ThreadPoolExecutor(1)
    for how in ("tasks", "thread"):
        for flight in (1, 64, 256):
            journal = open_journal(
                folder / f"{how}-{flight}.jsonl", JournalSettings(durability="sync", reserve=0, segment_bytes=1 << 33)
            )
            journal.append_body(BODY).wait()
            rates, ceilings, syncs, batches, costs, least = [], [], [], [], [], []
            slices = max(3, round(seconds / 0.25))
            for _ in range(slices):
                before, start, used = journal.stats(), time.perf_counter(), time.process_time()
                if how == "tasks":
                    done = asyncio.run(in_flight(journal, flight, 0.25))
                else:  # the main thread would have the journal's thread write, as its signal handlers may raise
                    done = threads.submit(windowed, journal, flight, 0.25).result()
                rates.append(done / (time.perf_counter() - start))
                costs.append((time.process_time() - used) / done)
                after = journal.stats()
                batch = (after.records - before.records) / max(1, after.syncs - before.syncs)
                batches.append(batch)
                times = bare(folder, max(1, round(batch)) * LINE, 0.25)
                syncs += times
                ceilings.append(batch * len(times) / sum(times))
                if how == "tasks":
                    start = time.perf_counter()
                    handed = asyncio.run(handed_over(folder, flight, 0.25))
                    least.append(handed / (time.perf_counter() - start))
            rate, ceiling = statistics.median(rates), statistics.median(ceilings)
            print(
                f"  {flight:4} in flight, {how:<6} {rate:10,.0f}/s  batch {statistics.median(batches):6.1f}"
                f"  ceiling {ceiling:10,.0f}/s  {rate / ceiling:6.1%}  write+fdatasync p50"
                f" {statistics.median(syncs) * 1e6:6.0f} µs  CPU {statistics.median(costs) * 1e6:5.1f} µs"
                + (f"  the least a loop can do {statistics.median(least) / ceiling:6.1%}" if least else "")
            )
            journal.close()
    threads.shutdown()


SECOND = """
import sys, time
from deia_hardening.journal import JournalSettings, open_journal
journal = open_journal(sys.argv[1], JournalSettings(durability="sync", reserve=0, segment_bytes=1 << 33))
body = b'"other":"' + b"y" * 450 + b'"'
end = time.time() + float(sys.argv[2])
done = 0
while time.time() < end:
    receipts = [journal.append_body(body) for _ in range(32)]
    receipts[-1].wait()
    done += 32
journal.close()
print(done)
"""


def second_process(folder: Path, seconds: float) -> None:
    path = folder / "two.jsonl"
    child = subprocess.Popen([sys.executable, "-c", SECOND, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    journal = open_journal(path, JournalSettings(durability="sync", reserve=0, segment_bytes=1 << 33))
    start = time.perf_counter()
    done = windowed(journal, 64, seconds)
    took = time.perf_counter() - start
    other = int(child.communicate()[0])
    journal.close()
    verdict = JournalReader(path).verify()
    print(
        f"\nWith a second process appending: {done / took:,.0f}/s here, {other / seconds:,.0f}/s there; "
        f"{verdict.records:,} records, chain {'intact' if verdict.ok else verdict.problems[:3]}"
    )


def memory(folder: Path, records: int) -> None:
    journal = open_journal(folder / "m.jsonl", JournalSettings(reserve=0, segment_bytes=32 << 20, compression="none"))
    seen = []
    for _ in range(5):
        for _ in range(records // 5):
            journal.append_body(BODY)
            if journal._bytes > 4 << 20:
                journal.drain()
        journal.drain()
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
        seen.append(pages * resource.getpagesize() / 1e6)
    journal.close()
    print(f"\nMemory after each fifth of {records:,} records: " + ", ".join(f"{size:.0f}" for size in seen) + " MB")


def startup(folder: Path, gigabytes: float) -> None:
    """A live file of that size: a true log at its end, before it filler that no start-up may need to read."""
    path = folder / "big.jsonl"
    settings = JournalSettings(reserve=0, segment_bytes=1 << 40, segment_age=0)
    journal = open_journal(path, settings)
    for _ in range(20_000):
        journal.append_body(BODY)
    journal.close()
    small = start_once(path, settings)
    head, _, rest = path.read_bytes().partition(b"\n")
    block = (b"f" * (LINE - 1) + b"\n") * 1747
    with open(path, "wb") as file:
        file.write(head + b"\n")
        while file.tell() < gigabytes * 1e9 - len(rest):
            file.write(block)
        file.write(rest)
    size = path.stat().st_size
    print(
        f"\nFirst record durable after a start: {small * 1e3:.1f} ms at 12 MB, "
        f"{start_once(path, settings) * 1e3:.1f} ms at {size / 1e9:.1f} GB"
    )


def start_once(path: Path, settings: JournalSettings) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        journal = open_journal(path, settings)
        journal.append_body(BODY).wait()
        times.append(time.perf_counter() - start)
        journal.close()
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", default="cpu,durable,second,memory,startup", help="which parts, by comma")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder here)")
    parser.add_argument("--slower", type=float, default=0.0, help="milliseconds added to every fdatasync, both sides")
    options = parser.parse_args()
    global slower
    if options.slower:
        slower = options.slower / 1000
        live.sync_file = synced
    records = 30_000 if options.quick else 200_000
    seconds = 0.5 if options.quick else 3.0
    folder = Path(tempfile.mkdtemp(prefix="journal-bench-", dir=options.folder))
    try:
        sync = bare(folder, LINE, 0.5)
        print(
            f"Python {platform.python_version()}, {platform.system()} {platform.release()}, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{file_system(folder)}: write+fdatasync of {LINE} bytes p50 {statistics.median(sync) * 1e6:.0f} µs, "
            f"p99 {sorted(sync)[int(len(sync) * 0.99)] * 1e6:.0f} µs"
        )
        parts = {
            "cpu": lambda: cpu_table(folder, records),
            "durable": lambda: durable_table(folder, seconds),
            "second": lambda: second_process(folder, seconds),
            "memory": lambda: memory(folder, records * 2),
            "startup": lambda: startup(folder, 0.5 if options.quick else 10),
        }
        for name in options.only.split(","):
            parts[name]()
    finally:
        shutil.rmtree(folder)
    assert threading.active_count() < 50


if __name__ == "__main__":
    main()
