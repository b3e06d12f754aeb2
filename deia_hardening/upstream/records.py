"""What a child hands up: given to who wants to see it, kept by the front's journal, and answered when it is on disk.

Records are taken in the order in which they came. A child learns of each that it asked about what became of it,
several at a time: one that awaits `durable()` in a version process waits for the front's disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deia_hardening.outer import Fate, parent_of

_logger = logging.getLogger("deia_hardening.child")

Say = Callable[[dict[str, Any]], None]
UNKEPT = "nobody in the front keeps records: the plugin audit is off there"


class Records:
    """The records of one child's runs. On the background loop."""

    def __init__(self, name: str, home: Path) -> None:
        self.watchers: list[Callable[[dict[str, Any]], None]] = []
        self._name = name
        self._home = home
        self._asked: deque[tuple[int, Fate, Say]] = deque()
        self._telling: asyncio.Task[None] | None = None

    def take(self, record: dict[str, Any], number: Any, say: Say) -> None:
        """Take one record; `number` is what the child calls it where it wants to know its fate."""
        for watcher in self.watchers:
            try:
                watcher(record)
            except Exception:
                _logger.exception("a record of %s was not taken", self._name)
        why = UNKEPT
        fate: Fate | None = None
        parent = parent_of(self._home)
        if parent is not None:
            try:
                fate = parent.take(record, self._name)
            except Exception as error:
                _logger.exception("a record of %s could not be kept", self._name)
                why = f"it could not be kept: {error!r}"
        if not isinstance(number, int):
            return
        if fate is None:
            say({"t": "kept", "n": [number], "why": why[:500]})
            return
        self._asked.append((number, fate, say))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def told(self, patience: float) -> None:
        """Wait until everybody who asked was told what became of their records, at most `patience` seconds."""
        if self._telling is not None and not self._telling.done():
            await asyncio.wait({self._telling}, timeout=patience)

    def lost(self, count: int) -> None:
        """The child could not hand up so many records, since nobody read them in time."""
        _logger.error("%s lost %d records: they came quicker than they were read", self._name, count)
        parent = parent_of(self._home)
        if parent is not None:
            parent.lost(count, self._name)

    async def _tell(self) -> None:
        while self._asked:
            waiting = list(self._asked)
            self._asked.clear()
            kept: dict[Say, list[int]] = {}
            for number, fate, say in waiting:
                try:
                    await fate.durable()
                except Exception as error:
                    say({"t": "kept", "n": [number], "why": str(error)[:500] or repr(error)})
                else:
                    kept.setdefault(say, []).append(number)
            for say, numbers in kept.items():
                say({"t": "kept", "n": numbers, "why": ""})
