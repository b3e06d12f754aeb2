"""An open-loop load generator: requests leave on a schedule, whether or not the answers came.

Closed-loop generators slow down with the server and hide overload (Schroeder, Wierman and Harchol-Balter, "Open
Versus Closed", NSDI 2006). Latency counts from the scheduled moment; how late the generator itself was is measured,
and a run in which it was late says nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import deque

import attrs


@attrs.define
class Shot:
    """One request: when it was due (seconds from the start), what came of it. `status` 0 is a broken connection."""

    due: float
    tag: str
    status: int = 0
    sent: float = 0.0
    took: float = 0.0
    """Seconds from the due moment to the last byte."""
    by: str = ""


def poisson(rate: float, seconds: float, tags: dict[str, float], seed: int) -> list[Shot]:
    """A Poisson schedule; `tags` are parts of 1."""
    rng = random.Random(seed)
    names, weights = list(tags), list(tags.values())
    shots, now = [], 0.0
    while True:
        now += rng.expovariate(rate)
        if now >= seconds:
            return shots
        shots.append(Shot(now, rng.choices(names, weights)[0]))


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[tuple[int, str]] | None = None
        self.data = b""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.data[:end].lower()
        mark = head.find(b"content-length: ")
        length = int(head[mark + 16 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
        if len(self.data) < end + 4 + length:
            return
        by = head.find(b"x-served-by: ")
        served = head[by + 13 :].split(b"\r\n", 1)[0].decode() if by >= 0 else ""
        waiter, self.waiter = self.waiter, None
        self.data = b""
        if b"connection: close" in head:
            self.closed = True
        if waiter is not None and not waiter.done():
            waiter.set_result((int(head[9:12]), served))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result((0, ""))


class Generator:
    """Sends shots to one server over as many kept connections as it needs."""

    def __init__(self, port: int, requests: dict[str, bytes], patience: float, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, port
        self.requests = requests
        self.patience = patience
        self.idle: deque[_Connection] = deque()
        self.start = 0.0

    async def _fire(self, shot: Shot) -> None:
        loop = asyncio.get_running_loop()
        connection = None
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed:
                break
            connection = None
        try:
            if connection is None:
                _, connection = await loop.create_connection(_Connection, self.host, self.port)
            connection.waiter = loop.create_future()
            assert connection.transport is not None
            connection.transport.write(self.requests[shot.tag])
            shot.status, shot.by = await asyncio.wait_for(connection.waiter, self.patience)
        except (OSError, TimeoutError):
            shot.status = 0
            if connection is not None:
                connection.closed = True
                if connection.transport is not None:
                    connection.transport.abort()
        shot.took = time.perf_counter() - self.start - shot.due
        if connection is not None and not connection.closed:
            self.idle.append(connection)

    async def run(self, shots: list[Shot]) -> None:
        """Send every shot at its time; return when all are answered or given up."""
        gc.collect()
        gc.freeze()
        gc.disable()
        tasks = set()
        self.start = time.perf_counter()
        for shot in shots:
            wait = self.start + shot.due - time.perf_counter()
            if wait > 0.0005:
                await asyncio.sleep(wait - 0.0003)
            elif not len(tasks) & 15:
                await asyncio.sleep(0)
            shot.sent = time.perf_counter() - self.start
            task = asyncio.create_task(self._fire(shot))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=self.patience + 1)
        for connection in self.idle:
            if connection.transport is not None:
                connection.transport.abort()
        gc.enable()


def lateness(shots: list[Shot]) -> float:
    """The generator's own p99 lateness in seconds."""
    return quantile([shot.sent - shot.due for shot in shots], 0.99)


def quantile(values: list[float], part: float) -> float:
    """The value below which `part` of the values lie; nan without any."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has more than one."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def stolen(before: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[float, float, float]:
    """The part of this machine's processor time that its host gave to others since `before` (0.0 where unknown)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [float(one) for one in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0, 0.0
    lost, total = fields[7], sum(fields)
    elapsed = total - before[2]
    return ((lost - before[1]) / elapsed if elapsed > 0 else 0.0), lost, total
