"""The store and the page beside the alternatives, on this disk.

    python benchmarks/store.py [--folder DIR] [--seconds 2]

What a look costs per request: the mapped page, against `PRAGMA data_version` and a read of the key. What a durable
write costs with 1, 8 and 32 writers in one process (they share commits), against the same disk's bare
`write` + `fdatasync`, and against one SQLite connection per writer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from deia_hardening.store import HomePage
from deia_hardening.store.sqlite import SqliteStore


def nanoseconds(call: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e9


def rate(writers: int, seconds: float, write: Callable[[int, int], object]) -> float:
    """Writes a second over `writers` threads."""
    counts = [0] * writers
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            write(number, counts[number])
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def bare(folder: Path, seconds: float) -> float:
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        os.write(descriptor, bytes(4096))
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - began)
    os.close(descriptor)
    mean, median = 1 / statistics.fmean(times), statistics.median(times) * 1e6
    print(f"  bare write+fdatasync of 4 KiB: {mean:8.0f}/s, median {median:.0f} µs")
    return mean


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        page = HomePage(folder / "page")
        store = SqliteStore(folder / "store.db", page)
        store.put("page/mode", b'"FULL"')
        plain = sqlite3.connect(folder / "store.db", isolation_level=None)
        print("a look, per request:")
        version = nanoseconds(lambda: plain.execute("PRAGMA data_version").fetchone(), 20_000)
        print(f"  the page, unchanged:           {nanoseconds(page.state, 200_000):8.0f} ns")
        print(f"  PRAGMA data_version:           {version:8.0f} ns")
        print(f"  store.get:                     {nanoseconds(lambda: store.get('page/mode'), 5_000):8.0f} ns")
        plain.close()
        print(f"a durable write of 100 bytes (SQLite {sqlite3.sqlite_version}, {folder}):")
        ceiling = bare(folder, options.seconds)
        value = bytes(100)
        for writers in (1, 8, 32):
            ours = rate(writers, options.seconds, lambda number, count: store.put(f"bench/{number}", value))
            connections = [
                sqlite3.connect(folder / "plain.db", isolation_level=None, timeout=30, check_same_thread=False)
                for _ in range(writers)
            ]
            for connection in connections:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB)")

            def theirs(number: int, count: int, connections: list[sqlite3.Connection] = connections) -> None:
                connections[number].execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (f"bench/{number}", value))

            other = rate(writers, options.seconds, theirs)
            for connection in connections:
                connection.close()
            print(
                f"  {writers:3} writers: store {ours:8.0f}/s ({ours / ceiling:5.2f} of bare), "
                f"a connection each {other:8.0f}/s"
            )
        store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
