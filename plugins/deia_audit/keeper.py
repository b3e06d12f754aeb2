"""Runs the sealer when there is something to seal: after records were written, and at stop; never on a request.

What happens is armed by the journal's callback, so an idle app has no timer. A problem with the evidence is told once
as an event and stands in health until it is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from deia_audit.events import EvidenceTrouble
from deia_audit.layout import LOG_NAME, Layout
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_audit.settings import AuditSettings
from deia_hardening.journal import Batch, Segment
from deia_hardening.plugin import Health, HealthState, Host

_SHARE = 0.6
"""The part of the checkpoint interval that records gather; the rest is for the disk."""


class Keeper:
    """The evidence of one app's trail in this process. `start` and `stop` run on the background loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sealer: Sealer | None = None
        self._settings = AuditSettings()
        self._armed = 0
        self._running = False
        self._trouble = ""
        self._since = 0.0
        self.on_sealed: Callable[[Segment], None] = lambda segment: None

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
        return sealer

    def configure(self, settings: AuditSettings) -> None:
        self._settings = settings
        if self._sealer is not None:
            self._sealer.policy = EpochPolicy(settings.epoch_records, settings.epoch_time)

    async def start(self, settings: AuditSettings) -> None:
        """Make the evidence of a new log, or take up what is there, before the first record is written."""
        self.configure(settings)
        await self._host.blocking(self.sealer.open)
        self._look()
        self._running = True
        if self.sealer.behind:
            self._arm()

    async def stop(self) -> None:
        """Seal what was recorded. The journal must have been drained."""
        self._running = False
        await self._host.blocking(self.sealer.finish)
        self._look()

    # -- on the journal's writer thread --

    def _written(self, batch: Batch) -> None:
        self.sealer.written(batch)
        if self._armed != os.getpid():
            self._arm()

    def _sealed(self, segment: Segment) -> None:
        self.on_sealed(segment)

    # -- on the background loop --

    def _arm(self) -> None:
        self._armed = os.getpid()
        self._host.runtime.submit(self._later)

    async def _later(self) -> None:
        try:
            await self._host.clock.sleep(self._settings.checkpoint_interval * _SHARE)
        finally:
            self._armed = 0
        if self._running:
            await self._host.blocking(self.sealer.tick)
            self._look()
            if self.sealer.behind and not self._armed:
                self._arm()

    def _look(self) -> None:
        problem = self.sealer.problem
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
