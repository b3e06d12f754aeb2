"""Quota keys that rest since an upstream said 429 or 529: on every worker of the home, and also after a restart.

They stand in the home's store and on its mapped page, as drains do. A rest holds here first and is stored after, once
however many calls are told the same; a dead store costs the other workers a refusal of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deia_degradation.fields import change

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

logger = logging.getLogger("deia_degradation")

FIELD = "resting"
_MOST = 16
"""Keys that are told of: the page has 3 KiB for all its fields."""
_LONGEST = 86400.0
_ABOUT = 1.0
"""Seconds by which a rest must become longer to be told of again."""

Until = dict[tuple[str, str], float]
"""Wall-clock time by pool and key (`quota:KEY`, `bot:ID`)."""


def read(value: Any, wall: float) -> Until:
    """What the page says and is not over; what can't be read keeps nobody away. Pure."""
    found: Until = {}
    if isinstance(value, Mapping):
        for pool, keys in value.items():
            for key, until in keys.items() if isinstance(keys, Mapping) else ():
                if isinstance(until, int | float) and wall < until <= wall + _LONGEST:
                    found[str(pool), str(key)] = float(until)
    return found


def write(until: Until) -> dict[str, dict[str, float]]:
    """What the page is to say: those that rest longest, if there are many. Pure."""
    value: dict[str, dict[str, float]] = {}
    for pool, key in sorted(until, key=lambda one: until[one], reverse=True)[:_MOST]:
        value.setdefault(pool, {})[key] = round(until[pool, key], 3)
    return value


class Rests:
    """The rests that this process knows of. `follow`, `tell` and `end`: any thread, no I/O."""

    def __init__(self, manager: DegradationManager) -> None:
        self._manager = manager
        self.reset()

    def reset(self) -> None:
        """As with nothing to store (first start, or after a fork)."""
        self._lock = threading.Lock()
        self._known: Until = {}
        """As of the page, and what is told to it."""
        self._untold: Until = {}
        """0.0 for a rest that was ended by hand."""
        self._storing = False

    def follow(self, value: Any) -> None:
        """Let rest here what another worker, or an earlier life, was told; and end what was ended by hand there."""
        wall = self._manager.host.clock.wall()
        new = read(value, wall)
        with self._lock:
            before, self._known = self._known, {**new, **{key: at for key, at in self._untold.items() if at > wall}}
            untold = set(self._untold)
        pools = self._manager.pools
        for (name, key), until in new.items():
            if name in pools and (name, key) not in untold and before.get((name, key), 0.0) < until:
                pools[name].rest(key, until - wall)
        for name, key in before.keys() - self._known.keys():
            if before[name, key] > wall and name in pools:
                pools[name].rest(key, 0.0)

    def tell(self, pool: str, key: str, seconds: float) -> None:
        """A key rests here for so long: the others are to know."""
        until = self._manager.host.clock.wall() + min(seconds, _LONGEST)
        with self._lock:
            if self._known.get((pool, key), 0.0) + _ABOUT > until:
                return
            self._known[pool, key] = self._untold[pool, key] = until
        self._store_soon()

    def end(self, pool: str, key: str) -> None:
        """A rest was ended by hand: elsewhere too."""
        with self._lock:
            if self._known.pop((pool, key), None) is None:
                return
            self._untold[pool, key] = 0.0
        self._store_soon()

    def _store_soon(self) -> None:
        with self._lock:
            if self._storing:
                return
            self._storing = True
        self._manager.host.runtime.submit(self._store)

    async def _store(self) -> None:
        while True:
            with self._lock:
                untold, self._untold = self._untold, {}
                if not untold:
                    self._storing = False
                    return

            def changed(value: Any, untold: Until = untold) -> dict[str, dict[str, float]]:
                wall = self._manager.host.clock.wall()
                until = read(value, wall)
                for key, at in untold.items():
                    until[key] = max(at, until.get(key, 0.0)) if at else 0.0
                return write({key: at for key, at in until.items() if at > wall})

            try:
                await change(self._manager.host.store, FIELD, changed)
            except Exception:
                logger.exception("a rest holds in this process only: the home's store did not take it")
