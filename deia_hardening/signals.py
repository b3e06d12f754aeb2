"""SIGTERM is ours first: unready at once, serving on for the lame duck time, then the server's own handler.

After that streams and WebSockets have a drain deadline; then they see the client leave (`http.disconnect`, close
code 1012), so that a server which waits for them for ever (uvicorn, granian) still comes to its end. The clean
stop is written without waiting for the lifespan. Installed when a lifespan opens in the main thread, restored
when the last one closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from deia_hardening import streams
from deia_hardening.errors import NotStarted
from deia_hardening.runtime import runtime

if TYPE_CHECKING:
    from deia_hardening.lifecycle import Core

Schedule = Callable[..., Any]

_lock = threading.RLock()  # a handler runs on the thread that may hold it
_cores: weakref.WeakSet[Core] = weakref.WeakSet()
_previous: Any = None
_installed = False
_leaving = False
_schedule: Schedule | None = None


def install(core: Core, schedule: Schedule) -> None:
    """Count `core` in; the first one in the main thread installs the handler, chained to what stood there.

    `schedule(fn)` runs `fn` on the serving loop, from any thread.
    """
    global _previous, _installed, _leaving, _schedule
    if threading.current_thread() is not threading.main_thread():
        return
    with _lock:
        _cores.add(core)
        _schedule = schedule
        if _installed:
            return
        standing = signal.getsignal(signal.SIGTERM)
        if standing is None:  # not a Python handler: it could not be chained
            return
        # Everything stands before the handler does: a signal may come between any two lines. The background loop too:
        # its start holds a lock, and the handler, on this same thread, would wait for that for ever.
        _ = runtime().loop
        _previous, _installed, _leaving = standing, True, False
        streams.reset()
        streams.arm("signals")
        try:
            signal.signal(signal.SIGTERM, _handle)
        except ValueError:  # not the main interpreter
            _installed = False
            streams.disarm("signals")


def remove(core: Core) -> None:
    """Count `core` out; after the last one what stood there before is put back."""
    global _installed
    with _lock:
        _cores.discard(core)
        if _cores or not _installed or threading.current_thread() is not threading.main_thread():
            return
        with contextlib.suppress(ValueError):
            if signal.getsignal(signal.SIGTERM) is _handle:
                signal.signal(signal.SIGTERM, _previous)
        _installed = False
        if not streams.ended:
            streams.disarm("signals")


def _handle(number: int, frame: FrameType | None) -> None:
    cores = list(_cores)
    if _leaving or not cores:
        _server(number, frame)
        return
    lame_duck = max(float(core.requests.lame_duck) for core in cores)
    _begin(cores, number, lame_duck)
    if not lame_duck:
        _server(number, frame)


def interrupt() -> None:
    """As SIGTERM without the lame duck time, for a server that ends at Ctrl-C: unready, streams to their deadline."""
    cores = list(_cores)
    if cores and not _leaving:
        _begin(cores, signal.SIGINT, 0.0)


def _begin(cores: list[Core], number: int, lame_duck: float) -> None:
    global _leaving
    _leaving = True
    for core in cores:
        core.leaving = True
    drain = max(float(core.requests.drain) for core in cores)
    runtime().submit(_leave, cores, number, lame_duck, drain)


def _server(number: int, frame: FrameType | None) -> None:
    """What the server (or the default) does on the signal."""
    if callable(_previous):
        _previous(number, frame)
    elif _previous != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


async def _leave(cores: list[Core], number: int, lame_duck: float, drain: float) -> None:
    """The background loop's part: wait, hand over to the server, end the streams, make the stop clean."""
    if lame_duck:
        await asyncio.sleep(lame_duck)
        schedule = _schedule
        with contextlib.suppress(RuntimeError, NotStarted):
            if schedule is not None:
                schedule(_server, number, None)
    deadline = time.monotonic() + drain
    while streams.count() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    streams.end_all()
    grace = max(float(core.requests.stop_timeout) for core in cores)
    deadline = time.monotonic() + grace
    while any(core.ready for core in cores) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    for core in cores:
        if core.ready:  # the server waits for something else: the stop is clean all the same
            await core.stop()
