"""What the machine's signals are read from: loops, threads, memory, processor, disk; and the readings of a tick.

Everything here runs on the background loop (files: on a core-owned thread) and costs the request path nothing but
a registration now and then. A figure that can't be read on this system is left out, never guessed.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from deia_degradation.modes import Reading
from deia_degradation.settings import SignalsSettings

_PROBES = 64


class LoopLag:
    """How late the serving loops run what is due: each is sent a probe, whose delay is measured there."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._loops: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()
        self._limiters: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._open: dict[int, tuple[float, Any]] = {}
        self._seen: deque[float] = deque(maxlen=_PROBES)
        self._number = 0

    def register(self) -> None:
        """Note the loop that this is called on, and its threads for sync endpoints. Some µs; call it now and then."""
        try:
            loop: Any = asyncio.get_running_loop()
            send = loop.call_soon_threadsafe
        except RuntimeError:
            if "trio" not in sys.modules:
                return
            import trio

            loop = trio.lowlevel.current_trio_token()
            send = loop.run_sync_soon
        if loop in self._loops:
            return
        with self._lock:
            self._loops[loop] = send
            try:
                import anyio.to_thread

                self._limiters[loop] = anyio.to_thread.current_default_thread_limiter()
            except Exception:  # no anyio loop here: this loop's threads are not known
                self._limiters.pop(loop, None)

    def probe(self) -> None:
        """Send each loop a probe; one that still has one out is not sent another."""
        now = self._clock()
        with self._lock:
            busy = [loop for _, loop in self._open.values()]
            loops = [(loop, send) for loop, send in self._loops.items() if not any(loop is one for one in busy)]
            for loop, send in loops:
                self._number += 1
                self._open[self._number] = (now, loop)
                number = self._number
                try:
                    send(self._arrived, number)
                except RuntimeError:  # the loop is closed (trio's RunFinishedError is one too)
                    self._open.pop(number, None)
                    self._loops.pop(loop, None)
                    self._limiters.pop(loop, None)

    def _arrived(self, number: int) -> None:
        with self._lock:
            sent = self._open.pop(number, None)
            if sent is not None:
                self._seen.append(self._clock() - sent[0])

    def p99(self) -> float:
        """The lateness of the last probes, those still out included; 0.0 when nothing is known."""
        now = self._clock()
        with self._lock:
            late = [*self._seen, *(now - sent for sent, _ in self._open.values())]
        if not late:
            return 0.0
        late.sort()
        return late[min(len(late) - 1, int(len(late) * 0.99))]

    def busy_threads(self) -> float:
        """The busiest loop's threads for sync endpoints in use, as a part of those it has."""
        with self._lock:
            limiters = list(self._limiters.values())
        return max((one.borrowed_tokens / one.total_tokens for one in limiters if one.total_tokens), default=0.0)

    def forget(self) -> None:
        """Nothing was measured lately: start over."""
        with self._lock:
            self._seen.clear()
            self._open.clear()


@attrs.frozen
class Machine:
    """What the process uses; None where this system does not tell."""

    memory: float | None = None
    """Resident memory as a part of what the process may have."""
    cpu: float | None = None
    """Cores in use since the last look."""
    disk: float | None = None
    """How full the home's file system is."""


class MachineReader:
    """Reads the process's use of the machine. `read` does system calls: run it on a core-owned thread."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._cpu: tuple[float, float] | None = None

    def read(self) -> Machine:
        now = time.monotonic()
        used = resource.getrusage(resource.RUSAGE_SELF)
        busy = used.ru_utime + used.ru_stime
        cpu = None
        if self._cpu is not None and now > self._cpu[0]:
            cpu = max(0.0, (busy - self._cpu[1]) / (now - self._cpu[0]))
        self._cpu = (now, busy)
        resident, total = _resident(), _memory_bound()
        return Machine(
            memory=resident / total if resident is not None and total else None,
            cpu=cpu,
            disk=_fullness(self._home),
        )


def _resident() -> int | None:
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _memory_bound() -> int | None:
    """The cgroup's bound, else the machine's memory, in bytes."""
    bounds = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            bounds.append(int(Path(path).read_text("ascii")))
        except (OSError, ValueError):
            continue
    try:
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError):
        pass
    return min((bound for bound in bounds if bound > 0), default=None)


def _fullness(path: Path) -> float | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    total = status.f_bavail + status.f_blocks - status.f_bfree
    return 1.0 - status.f_bavail / total if total else None


@attrs.frozen
class Observed:
    """The figures of one tick."""

    arrived: int = 0
    shed: int = 0
    wait: float = 0.0
    bots_gone: float = 0.0
    loop_lag: float = 0.0
    threads: float = 0.0
    trouble: int = 0
    """Problems that store and journals report."""
    machine: Machine = Machine()


def bots_gone(part: float, settings: SignalsSettings) -> list[Reading]:
    """The signal that acts at once; none where it is turned off. Pure."""
    return [Reading("bots gone", part, settings.bots_gone, at_once=True)] if settings.bots_gone else []


def readings(observed: Observed, settings: SignalsSettings) -> list[Reading]:
    """The signals of a tick, those that are turned off left out. Pure."""
    found: list[Reading] = []
    if settings.shed and observed.arrived:
        found.append(Reading("shed ratio", observed.shed / observed.arrived, settings.shed))
    elif settings.shed:
        found.append(Reading("shed ratio", 0.0, settings.shed))
    if settings.wait:
        found.append(Reading("smallest wait", observed.wait, settings.wait))
    found += bots_gone(observed.bots_gone, settings)
    if settings.loop_lag:
        found.append(Reading("loop lag p99", observed.loop_lag, settings.loop_lag))
    if settings.threads:
        found.append(Reading("busy threads", observed.threads, settings.threads))
    machine = observed.machine
    if settings.memory and machine.memory is not None:
        memory = settings.memory
        found.append(Reading("memory", machine.memory, memory, calm_below=max(0.0, memory - 0.05)))
    if settings.cpu and machine.cpu is not None:
        found.append(Reading("cpu", machine.cpu, settings.cpu))
    if settings.disk and machine.disk is not None:
        disk = settings.disk
        found.append(Reading("disk", machine.disk, disk, calm_below=max(0.0, disk - 0.01)))
    if settings.store:
        found.append(Reading("store and journals", float(observed.trouble), 1.0))
    return found
