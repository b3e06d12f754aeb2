"""Runs the sealer when there is something to seal: after records were written, and at stop; never on a request.

What happens is armed by the journal's callback, so an idle app has no timer. A problem with the evidence is told once
as an event and stands in health until it is gone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from deia_audit import newlog
from deia_audit.checkpoint import Checkpoint
from deia_audit.events import EvidenceTrouble
from deia_audit.heads import Heads
from deia_audit.holds import Holds
from deia_audit.immutable import is_immutable, set_immutable
from deia_audit.layout import LOG_NAME, Layout
from deia_audit.query.build import build_elsewhere
from deia_audit.query.index import index_path, remove_strays
from deia_audit.query.soundness import State, index_key, state
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_audit.settings import AuditSettings
from deia_audit.witness_client import WitnessClient, parse_witnesses
from deia_hardening.journal import Batch, JournalReader, JournalSettings, Segment
from deia_hardening.plugin import Health, HealthState, Host

_SHARE = 0.85
"""The most of the checkpoint interval that records gather for; the rest is for the disk."""
_LEAST = 0.3
_MEMORY = 0.9
"""What a slow tick weighs at the next one."""


def gathering(interval: float, took: float) -> float:
    """Return how many seconds records gather before a tick, so that checkpoints are no more than `interval` apart.

    `took` is what recent ticks took; one that takes three times as long is still in time.
    """
    return max(interval * _SHARE - 2 * took, interval * _LEAST)


def tend(layout: Layout, indexed: bool, frozen: bool, compressed: bool) -> str:
    """Make sealed segments read-only, and immutable or indexed where that is wished; why one could not be. Blocking.

    `compressed` says that a segment is final only once it is compressed.
    """
    problem = ""
    key = index_key(layout.keys)
    segments = JournalReader(layout.log).segments()
    remove_strays(layout.index, segments)
    for segment in segments:
        if segment.live:
            continue
        try:
            mode = segment.path.stat().st_mode
            if mode & 0o222:
                segment.path.chmod(mode & 0o555)
        except FileNotFoundError:  # it was compressed or pruned in between
            continue
        except PermissionError:
            pass  # it is immutable
        if frozen and segment.compressed == compressed:
            problem = set_immutable(segment.path, True) or problem
        if indexed and state(index_path(layout.index, segment), key) is not State.SOUND:
            build_elsewhere(segment, layout.index, layout.keys)
    return f"sealed segments are not immutable: {problem}" if problem else ""


class Keeper:
    """The evidence of one app's trail in this process. `start` and `stop` run on the background loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sealer: Sealer | None = None
        self._settings = AuditSettings()
        self._armed = 0
        self._took = 0.0
        self._running = False
        self._trouble = ""
        self._since = 0.0
        self._witnesses: WitnessClient | None = None
        self._heads: Heads | None = None
        self._witnessed: Checkpoint | None = None
        self._told: Checkpoint | None = None
        self._ask_at = self._tell_at = 0.0
        self._waiter: asyncio.Task[None] | None = None
        self._waiting = 0
        self._tending = False
        self._soft = ""
        self.after_tick: Callable[[], None] = lambda: None
        self.in_tick: Callable[[], None] = lambda: None
        """Besides what the sealer does; on its thread."""

    @property
    def sealer(self) -> Sealer:
        """The sealer, made at first use."""
        sealer = self._sealer
        if sealer is None:
            settings = self._settings
            journal = self._host.journal(LOG_NAME)
            policy = EpochPolicy(settings.epoch_records, settings.epoch_time)
            layout = Layout.of(self._host.home)
            sealer = self._sealer = Sealer(layout, journal, settings.origin, policy, self._host.clock)
            journal.on_batch(self._written, sealer.synced, self._sealed)
            journal.guard_retention(self._held)
        return sealer

    def configure(self, settings: AuditSettings) -> None:
        self._settings = settings
        layout = Layout.of(self._host.home)
        witnesses = parse_witnesses(settings.witnesses)
        self._witnesses = WitnessClient(layout, witnesses, settings.witness_timeout) if witnesses else None
        self._heads = Heads(settings.heads) if settings.heads else None
        if self._sealer is not None:
            self._sealer.policy = EpochPolicy(settings.epoch_records, settings.epoch_time)

    async def start(self, settings: AuditSettings) -> None:
        """Make the evidence of a new log, or take up what is there, before the first record is written."""
        self.configure(settings)
        await self._host.blocking(self._open)
        self._look()
        self._running = True
        if self.sealer.behind:
            self._arm()
        if settings.immutable:
            self._host.runtime.submit(self._after_seal)

    def _open(self) -> None:
        """Take the evidence up; a log that can't go on is set aside where that was asked for. Blocking."""
        sealer = self.sealer
        with newlog.exclusively(sealer.layout):
            reason = newlog.requested(sealer.layout)
            if reason is None:
                sealer.open()
                if sealer.problem and self._settings.on_missing == "new_log":
                    reason = sealer.problem
            if reason is None:
                return
            if self._host.journal(LOG_NAME).stats().records:
                sealer.problem = "a new log begins with the next start of the process: this one has the old log open"
                return
            newlog.set_aside(sealer.layout, reason, self._host.clock.wall())
            sealer.open()

    async def stop(self) -> None:
        """Write and seal what was recorded. One job, on its way before anything is awaited: a stop that runs out of its
        time is cancelled, and must not take the last checkpoint with it."""
        self._running = False
        if self._waiter is not None and self._waiting == os.getpid():
            self._waiter.cancel()
        await self._host.blocking(self.sealer.finish)
        self._look()
        await self._tell(at_stop=True)

    # -- on the journal's writer thread --

    def _written(self, batch: Batch) -> None:
        self.sealer.written(batch)
        if self._armed != os.getpid():
            self._arm()

    def _sealed(self, segment: Segment) -> None:
        self._host.runtime.submit(self._after_seal)

    def _held(self, segment: Segment) -> bool:
        """Whether retention must leave a segment: it is under hold, or a checkpoint does not cover it yet."""
        sealer = self.sealer
        checkpoint = sealer.checkpoint
        following = next(
            (one for one in JournalReader(sealer.layout.log).segments() if one.first > segment.first), None
        )
        if checkpoint is None or following is None or following.first > checkpoint.head.size:
            return True
        if Holds(sealer.layout.evidence).covers(segment.first, following.first - 1):
            return True
        if is_immutable(segment.path):
            set_immutable(segment.path, False)
        return False

    # -- on the background loop --

    def _arm(self) -> None:
        self._armed = os.getpid()
        self._host.runtime.submit(self._later)

    async def _later(self) -> None:
        try:
            await self._host.clock.sleep(gathering(self._settings.checkpoint_interval, self._took))
        finally:
            self._armed = 0
        if self._running:
            began = self._host.clock.monotonic()
            await self._host.blocking(self._tick)
            self._took = max(self._host.clock.monotonic() - began, self._took * _MEMORY)
            self.after_tick()
            self._look()
            await self._tell(at_stop=False)
            if self.sealer.behind and not self._armed:
                self._arm()

    def _tick(self) -> None:
        self.sealer.tick()
        self.in_tick()

    async def _after_seal(self) -> None:
        """Look after segments that were sealed; one round at a time."""
        if not self._tending:
            self._tending = True
            try:
                settings = self._settings
                compressed = self._host.settings(JournalSettings).compression != "none"
                self._soft = await self._host.blocking(
                    tend, self.sealer.layout, settings.index == "seal", settings.immutable, compressed
                )
                self._look()
            finally:
                self._tending = False

    async def _tell(self, *, at_stop: bool) -> None:
        """Hand the newest checkpoint to witnesses and to where heads are told, each at its own pace."""
        checkpoint = self.sealer.checkpoint
        now = self._host.clock.monotonic()
        if checkpoint is None:
            return
        if self._witnesses is not None and checkpoint != self._witnessed and (at_stop or now >= self._ask_at):
            self._ask_at = now + self._settings.witness_interval
            self._witnessed = checkpoint
            await self._host.blocking(self._witnesses.submit, checkpoint)
            if self._witnesses.problems:
                self._witnessed = None
            self._look()
        if self._heads is not None and checkpoint != self._told and (at_stop or now >= self._tell_at):
            self._tell_at = now + self._settings.heads_interval
            self._told = checkpoint
            await self._host.blocking(self._heads.tell, checkpoint)
            if self._heads.problem:
                self._told = None
            self._look()
        if not at_stop:
            self._tell_in_time()

    def _tell_in_time(self) -> None:
        """See that what is not told yet is told when its time has come, though nothing more may be recorded."""
        checkpoint, due = self.sealer.checkpoint, []
        if self._witnesses is not None and checkpoint != self._witnessed:
            due.append(self._ask_at)
        if self._heads is not None and checkpoint != self._told:
            due.append(self._tell_at)
        if due and self._waiting != os.getpid():
            self._waiting = os.getpid()
            wait = max(min(due) - self._host.clock.monotonic(), 0.0)
            self._waiter = asyncio.get_running_loop().create_task(self._tell_after(wait))

    async def _tell_after(self, seconds: float) -> None:
        try:
            await self._host.clock.sleep(seconds)
        finally:
            self._waiting = 0
        if self._running:
            await self._tell(at_stop=False)

    def _problems(self) -> str:
        """What is wrong with the evidence, or with those who should hold it elsewhere."""
        found = [self.sealer.problem] if self.sealer.problem else []
        if self._witnesses is not None:
            found += self._witnesses.problems.values()
        if self._soft:
            found.append(self._soft)
        if self._heads is not None and self._heads.problem:
            found.append(self._heads.problem)
        return "; ".join(found)

    def _look(self) -> None:
        problem = self._problems()
        if problem == self._trouble:
            return
        self._trouble = problem
        self._since = time.time()
        if problem:
            self._host.events.emit(EvidenceTrouble(reason=problem))
        self._host.touched()

    def health(self) -> Health:
        """What is wrong with the evidence, if anything."""
        if self._trouble:
            return Health(HealthState.DEGRADED, self._trouble, self._since)
        checkpoint = self._sealer.checkpoint if self._sealer is not None else None
        figures = {} if checkpoint is None else {"checkpoint": checkpoint.head.size, "origin": checkpoint.head.origin}
        return Health(figures=figures)
