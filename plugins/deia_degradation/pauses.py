"""Garbage collections without what stands anyway: a full one holds up every request of the process.

Code, settings and pools of a service that is up don't become garbage, yet each full collection visits all of it: 20
to 50 ms of processor time for a small app, some every ten seconds at a thousand connections a second. `gc.freeze`
leaves out what is there now (then 1 to 7 ms were seen); `release` at the stop takes it in again. Who has frozen
something already is left to it.
"""

from __future__ import annotations

import gc
import threading

_lock = threading.Lock()
_holders: set[int] = set()


def hold(owner: object) -> None:
    """Leave what is there now out of collections until `release`. Once per process, and per owner. Microseconds."""
    with _lock:
        if _holders or not gc.get_freeze_count():
            if not _holders:
                gc.freeze()
            _holders.add(id(owner))


def release(owner: object) -> None:
    """The owner's service has stopped; after the last one everything is collected again."""
    with _lock:
        if id(owner) in _holders:
            _holders.remove(id(owner))
            if not _holders:
                gc.unfreeze()
