"""What happens by the clock, on the background loop: signals are read, waiters swept, bots checked, streams ended.

It runs only while there is something to see to: ticks stop when nothing happens and begin again with the next request
or event, sweeps run while somebody waits, checks while a pool wants them.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

from deia_degradation import pauses
from deia_degradation.signals import Machine, Observed, readings
from deia_hardening.plugin import Completion, Mode

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

logger = logging.getLogger("deia_degradation")

_SWEEP = 0.05
_PROBE_EVERY = 0.25
_SHORTEST_PAUSE = 0.05


class Ticks:
    """The recurring work of one manager. `wake` and `sweep_soon` are safe from any thread."""

    def __init__(self, manager: DegradationManager) -> None:
        self._manager = manager
        self.reset()

    def reset(self) -> None:
        """As never started (first start, or after a fork)."""
        self._lock = threading.Lock()
        self.running = False
        self.stopped = False
        self._manager.control.meet_at(0.0)
        self._life = object()
        """Replaced by each start, so that what ran before it ends."""
        self._sweeping = False
        self._checking: Completion[None] | None = None

    def stop(self) -> None:
        """End everything at its next turn."""
        self.stopped = True
        self._life = object()

    # -- signals -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something happens: see to it that signals are read."""
        if self.running:
            return
        with self._lock:
            begin = not (self.running or self.stopped)
            self.running = self.running or begin
        if begin:
            self._manager.host.runtime.submit(self._run)

    async def _run(self) -> None:
        manager = self._manager
        control, gate, clock = manager.control, manager.gate, manager.host.clock
        arrived = seen = manager.arrived
        shed = manager.shed
        quiet_since = clock.monotonic()
        life = self._life
        manager.lag.forget()
        while life is self._life:
            try:
                await self._probe(clock.monotonic() + float(manager.settings.modes.tick))
                if life is not self._life:
                    return
                now_arrived, now_shed = manager.arrived, manager.shed
                observed = await self.observe(now_arrived - arrived, now_shed - shed)
                arrived, shed = now_arrived, now_shed
                control.look()
                await control.tick(readings(observed, manager.settings.signals))
                self._end_streams()
                if manager.settings.freeze and manager.host.server.open and life is self._life:
                    pauses.hold(manager)
                await manager.sync_budgets()
            except Exception:
                logger.exception("a look at the signals failed; the mode stays %s", control.mode.value)
                await clock.sleep(float(manager.settings.modes.tick))
            now = clock.monotonic()
            if manager.arrived != seen:
                seen, quiet_since = manager.arrived, now
            idle = now - quiet_since >= manager.settings.modes.idle
            if idle and control.quiet and not (gate.in_flight or gate.room.size or manager.open_streams):
                break
        if life is not self._life:
            return
        self.running = False
        control.meet_at(0.0)  # with the next request
        if manager.arrived != seen:  # a request came as this ended
            self.wake()

    async def _probe(self, end: float) -> None:
        """Send probes to the serving loops until `end`."""
        clock = self._manager.host.clock
        while True:
            self._manager.lag.probe()
            left = end - clock.monotonic()
            if left <= 0:
                return
            await clock.sleep(min(_PROBE_EVERY, left))

    async def observe(self, arrived: int, shed: int) -> Observed:
        """The figures of one tick."""
        manager = self._manager
        signals = manager.settings.signals
        machine = Machine()
        if signals.memory or signals.cpu or signals.disk:
            machine = await manager.host.blocking(manager.machine.read)
        return Observed(
            arrived=arrived,
            shed=shed,
            wait=max(gate.read_smallest_wait() for gate in (manager.gate, *manager.threads.all())),
            bots_gone=manager.bots_gone(),
            loop_lag=manager.lag.p99(),
            threads=manager.lag.busy_threads(),
            trouble=self._trouble() if signals.store else 0,
            machine=machine,
        )

    def _trouble(self) -> int:
        handle = getattr(self._manager.host, "home_handle", None)
        if handle is None:
            return 0
        return sum(not journal.health().ok for journal in handle.journals())

    def _end_streams(self) -> None:
        """In MAINTENANCE, once the drain is over: tell the streams that are not served then to end."""
        manager = self._manager
        control = manager.control
        if control.mode is not Mode.MAINTENANCE or not manager.open_streams:
            return
        lasted = manager.host.clock.monotonic() - control.state.since
        if lasted < manager.settings.maintenance.drain:
            return
        told = sum(one.end_unless_served(Mode.MAINTENANCE) for one in list(manager.open_streams.values()))
        if told:
            logger.info("maintenance: %d streams were ended after %.0f s", told, lasted)

    # -- waiters -------------------------------------------------------------------------------------------

    def sweep_soon(self) -> None:
        """Somebody waits: see to it that those whose time is over are told."""
        if self._sweeping:
            return
        with self._lock:
            begin, self._sweeping = not self._sweeping, True
        if begin:
            self._manager.host.runtime.submit(self._sweep)

    async def _sweep(self) -> None:
        manager, life = self._manager, self._life
        while life is self._life:
            await manager.host.clock.sleep(_SWEEP)
            now = monotonic()
            if manager.gate.sweep(now) + manager.threads.sweep(now):
                continue
            self._sweeping = False
            if manager.gate.room.size or any(gate.room.size for gate in manager.threads.all()):
                self.sweep_soon()  # one came in just now
            return

    # -- active checks -------------------------------------------------------------------------------------

    def begin_checks(self) -> None:
        """Run the active checks, if any pool wants them and they don't run."""
        if self._checking is not None and not self._checking.done():
            return
        if any(pool.settings.check.every for pool in self._manager.pools.values()):
            self._checking = self._manager.host.runtime.submit(self._check)

    async def _check(self) -> None:
        clock, life = self._manager.host.clock, self._life
        while life is self._life:
            wanted = [pool for pool in self._manager.pools.values() if pool.settings.check.every]
            if not wanted:
                return
            now = clock.monotonic()
            for pool in wanted:
                if now >= pool.checked_at + pool.settings.check.every:
                    pool.checked_at = now
                    try:
                        await pool.checker.once()
                    except Exception:
                        logger.exception("the active checks of pool %s failed", pool.name)
            due = min(pool.checked_at + pool.settings.check.every for pool in wanted)
            await clock.sleep(max(_SHORTEST_PAUSE, due - clock.monotonic()))
