"""Who supervises the children of one home in this process: the run folder's lock, and what the last supervisor left.

Children that are kept (`keeping.py`) wait to be claimed by the upstream of their name; all others that outlived
their supervisor are ended. The kernel frees the lock of a process that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import ClassVar, TypeAlias

from deia_hardening.runtime import runtime
from deia_hardening.upstream import keeping
from deia_hardening.upstream.keeping import Kept
from deia_hardening.upstream.rundir import ChildRecord, RunDir, end_survivor

_logger = logging.getLogger("deia_hardening.child")
_UNCLAIMED = 30.0  # seconds after which a child of the supervisor before is ended where nobody goes on with it

Orphan: TypeAlias = tuple[ChildRecord, Kept]


class Supervision:
    """The run folder of one home in this process, shared by its upstreams; the lock goes with the last of
    them."""

    _all: ClassVar[dict[Path, Supervision]] = {}
    _guard = threading.Lock()

    def __init__(self, home: Path) -> None:
        self.rundir = RunDir(home)
        self.users = 0
        self._turn = threading.Lock()
        self._reaped = False
        self._orphans: dict[str, Orphan] = {}
        self._cleaning: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, home: Path) -> Supervision:
        with cls._guard:
            return cls._all.setdefault(home, cls(home))

    @classmethod
    def after_fork(cls) -> None:
        for known in cls._all.values():
            known.rundir.unlock()  # the parent keeps the lock: a flock stays while any copy is open there
        cls._all = {}
        cls._guard = threading.Lock()

    def lead(self, patience: float) -> bool:
        """Try to be the supervisor; the first success ends what survived the last one and is not kept. Blocks."""
        with self._turn:
            self.rundir.prepare()
            self.rundir.join()
            if not self.rundir.try_lock():
                return False
            if not self._reaped:
                orphans = self._take()
                if orphans is None:
                    return False  # the keeper is busy: asked again soon, its children serve on
                self._reaped = True
                self._orphans = orphans
                ended = self.rundir.reap(patience, {kept.pid for _, kept in self._orphans.values()})
                if ended:
                    _logger.warning("ended children that had survived their supervisor: %s", ended)
            return True

    def _take(self) -> dict[str, Orphan] | None:
        """The children that another supervisor has left and that are kept, each recognised; None: not known."""
        found: dict[str, Orphan] = {}
        line = keeping.line()
        taken = line.take(self.rundir.home) if line is not None else []
        if taken is None:
            return None
        for kept in taken:
            record = self.rundir.read(kept.name)
            if record is not None and record.pid == kept.pid and record.lives() and kept.name not in found:
                found[kept.name] = (record, kept)
            else:  # nobody can call it
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(kept.pidfd, signal.SIGTERM)
                kept.close()
        return found

    def claim(self, name: str) -> Orphan | None:
        """The child `name` of the supervisor before, once."""
        with self._turn:
            return self._orphans.pop(name, None)

    def end_orphan(self, orphan: Orphan, patience: float) -> None:
        """End a child that nobody wants any more. Blocks."""
        record, kept = orphan
        end_survivor(record, patience)
        kept.close()
        self.rundir.remove(record.name, record.pid)

    async def end_unclaimed(self, patience: float) -> None:
        """End the children of the supervisor before that no upstream of this process goes on with."""
        await asyncio.sleep(_UNCLAIMED)
        while self._orphans:
            name = next(iter(self._orphans))
            if (orphan := self.claim(name)) is not None:
                _logger.warning("child %s is nobody's any more: ended", name)
                await runtime().blocking(self.end_orphan, orphan, patience)

    def clean(self, patience: float) -> None:
        """See to it that `end_unclaimed` runs where it must. On the background loop."""
        if self._orphans and (self._cleaning is None or self._cleaning.done()):
            self._cleaning = asyncio.get_running_loop().create_task(self.end_unclaimed(patience))

    def enter(self) -> None:
        with self._guard:
            self.users += 1

    def leave(self) -> None:
        with self._guard:
            self.users -= 1
            if self.users == 0:
                if self._cleaning is not None:
                    self._cleaning.cancel()
                while self._orphans:  # the keeper has them still
                    self._orphans.popitem()[1][1].close()
                self.rundir.unlock()
                self._reaped = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Supervision.after_fork)
