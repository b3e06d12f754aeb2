"""The recovery plugin: wires the state, its backups and their schedules to the core, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

from deia_hardening.errors import NotEnabled
from deia_hardening.plugin import ASGIApp, Health, HealthState, Host, Layer, Operation, Plugin, Position, TaskSink
from deia_recovery.backup.retention import clock_jumped
from deia_recovery.errors import join_starlette
from deia_recovery.inbox.middleware import InboxMiddleware
from deia_recovery.inbox.replay import STATUS, Replayer
from deia_recovery.inbox.senders import sender_for
from deia_recovery.operations import operations
from deia_recovery.schedule import Every, due
from deia_recovery.service import DisasterRecovery
from deia_recovery.settings import RecoverySettings

logger = logging.getLogger("deia_recovery")

_TICK = 0.25


class RecoveryPlugin(Plugin[RecoverySettings]):
    """Keeps durable state recoverable."""

    name: ClassVar[str] = "recovery"
    Settings: ClassVar[type] = RecoverySettings
    position: ClassVar[Position] = Position.STATE

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        join_starlette()
        self._given = RecoverySettings()
        self._recovery: DisasterRecovery | None = None
        self._since = 0.0

    def layers(self, settings: RecoverySettings) -> Sequence[Layer]:
        self._given = settings
        senders = {route.path: sender_for(route) for route in settings.inbox}

        def wrap(app: ASGIApp) -> ASGIApp:
            return InboxMiddleware(app, senders, self._replayer)

        return [Layer(Position.STATE, wrap, paths=(STATUS, *senders))]

    def _replayer(self) -> Replayer | None:
        return None if self._recovery is None else self._recovery.replayer

    async def check(self, settings: RecoverySettings) -> None:
        for route in settings.inbox:
            sender_for(route)
        await self.host.blocking(self._refuse_private, settings)

    def _refuse_private(self, settings: RecoverySettings) -> None:
        """Raise ValueError where `protect` would have a backup hold what must never be in one. Blocks."""
        private = [(self.host.home / name).resolve() for name in ("keys", "state")]
        private.append(Path(settings.backups or self.host.home / "backups").resolve())
        for one in settings.protect:
            path = Path(one.path).resolve()
            for place in private:
                if path.is_relative_to(place) or place.is_relative_to(path):
                    raise ValueError(
                        f"protect: {path} holds {place}: keys, control state and backups are never in a backup; name "
                        "the files and folders beside it"
                    )

    async def adopted(self, old: RecoverySettings | None, new: RecoverySettings) -> None:
        if self._recovery is not None:
            self._recovery.settings = new

    def run(self) -> AbstractAsyncContextManager[None]:
        return self._live()

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        host = self.host
        await host.blocking(self._refuse_private, self._settings())
        recovery = self._recovery = DisasterRecovery(host, self._settings())
        withdraw: list[Callable[[], None]] = [host.services.provide(DisasterRecovery, recovery)]
        try:
            await host.blocking(recovery.start)
        except BaseException:
            withdraw[0]()
            await host.blocking(recovery.stop)
            raise
        withdraw.extend(recovery.subscribe())
        withdraw.append(host.services.provide(TaskSink, recovery.replayer))
        keepers = {
            asyncio.create_task(self._keep(recovery), name="deia-recovery-keeper"),
            asyncio.create_task(self._ship(recovery), name="deia-recovery-shipper"),
        }
        try:
            yield
        finally:
            recovery.backups.interrupt()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)
            for take_back in withdraw:
                take_back()
            await host.blocking(recovery.stop)
            self._recovery = None

    @asynccontextmanager
    async def run_inner(self) -> AsyncIterator[None]:
        """In a version process: the durable state, opened as a worker does. Backups, schedules and replays are the
        front's."""
        host = self.host
        recovery = self._recovery = DisasterRecovery(host, self._settings())
        withdraw = host.services.provide(DisasterRecovery, recovery)
        try:
            await host.blocking(recovery.start)
            yield
        finally:
            withdraw()
            await host.blocking(recovery.stop)
            self._recovery = None

    def _settings(self) -> RecoverySettings:
        try:
            return self.host.settings(RecoverySettings)
        except NotEnabled:
            return self._given

    async def _ship(self, recovery: DisasterRecovery) -> None:
        """Ship at its interval, beside the rounds: a rehearsal of many seconds must not put it off."""
        clock = self.host.clock
        while True:
            await clock.sleep(float(recovery.settings.ship_every))
            if recovery.engine.peek() >= 0 and recovery.generation is not None:
                with contextlib.suppress(Exception):  # kept among the problems, and tried again
                    await _to_its_end(self.host.blocking(recovery.perform, ("ship",)))

    async def _keep(self, recovery: DisasterRecovery) -> None:
        """The rounds: snapshot, rehearse, scrub, prune, each at its time, one after the other."""
        done: dict[tuple[str, ...], float] = {}
        clock = self.host.clock
        wall, monotonic = clock.wall(), clock.monotonic()
        while True:
            await clock.sleep(_TICK)
            try:
                jumped = clock_jumped(wall, clock.wall(), clock.monotonic() - monotonic)
                wall, monotonic = clock.wall(), clock.monotonic()
                await self._round(recovery, done, jumped)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                recovery.problem = f"a round of recovery failed: {error}"
                logger.warning("%s", recovery.problem)
            else:
                recovery.problem = ""

    async def _round(self, recovery: DisasterRecovery, done: dict[tuple[str, ...], float], jumped: bool) -> None:
        blocking, now = self.host.blocking, self.host.clock.monotonic()
        recovery.loosen()
        if recovery.generation is not None:
            await recovery.replay()
        if recovery.engine.peek() < 0 or recovery.generation is None:
            return  # nothing was written or read so far: nothing to keep
        if not done:
            done.update(await blocking(recovery.schedule_memory, now))
        for task in due(self._tasks(recovery), done, now):
            kind = task.name[0]
            if kind == "prune" and jumped:
                done[task.name] = now
                recovery.journal({"kind": "recovery.pruning-suspended", "detail": "the wall clock jumped"})
                continue
            try:
                await _to_its_end(blocking(recovery.perform, task.name))
            finally:
                done[task.name] = self.host.clock.monotonic()
                if kind == "snapshot" and "all" in task.name:
                    for other in self._tasks(recovery):
                        if other.name[0] == "snapshot":
                            done[other.name] = done[task.name]

    def _tasks(self, recovery: DisasterRecovery) -> list[Every]:
        settings = recovery.settings
        tasks = [
            Every(("rehearse",), float(settings.rehearse_every)),
            Every(("scrub",), float(settings.scrub_every)),
            Every(
                ("prune",),
                min(3600.0, min(float(one.every) for one in settings.snapshots) if settings.snapshots else 3600.0),
            ),
            Every(("measure",), float(settings.measure_every)),
            Every(("purge",), 60.0),
        ]
        tasks.extend(Every(("snapshot", *sorted(one.what)), float(one.every)) for one in settings.snapshots)
        return tasks

    def operations(self) -> Sequence[Operation]:
        return operations(self._lend)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[DisasterRecovery]:
        """The running service, or, on a command line with no service up, one for this call."""
        if self._recovery is not None:
            yield self._recovery
            return
        blocking = self.host.blocking
        recovery = DisasterRecovery(self.host, self._settings(), offline=True)
        try:
            yield recovery
        finally:
            await blocking(recovery.stop)
            await blocking(self.host.journal("disaster-recovery").drain, 5.0)

    def health(self) -> Health:
        recovery = self._recovery
        if recovery is None:
            return Health(HealthState.OK, "not started")
        problems = recovery.complaints()
        if problems and not self._since:
            self._since = time.time()
        elif not problems:
            self._since = 0.0
        state = HealthState.OK
        if problems:
            state = HealthState.FAILED if recovery.engine.failure else HealthState.DEGRADED
        return Health(state, "; ".join(problems[:3]), self._since, recovery.figures())


async def _to_its_end(job: Awaitable[None]) -> None:
    """Await a thread's work also when cancelled: a stop must not pull the folder away under it."""
    try:
        await job
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await job
        raise
