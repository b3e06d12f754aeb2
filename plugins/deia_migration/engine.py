"""Drives the rollout of a home: looks, decides by the pure machine, acts, writes it down.

What raises the weight is journaled first, then done; what lowers it is done first (one assignment here, one write to
the page for the other workers) and journaled after. Any worker may act; the store's compare-and-set keeps one history,
and the lease makes one of them look at the clock. After a crash the next holder goes on from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from deia_hardening.events import WeightChanged
from deia_hardening.ids import uuid7
from deia_hardening.plugin import SYSTEM, Actor, Host, Problem, Target
from deia_hardening.store import StaleRevision, StoreError
from deia_migration import log
from deia_migration.book import FIELD, Book, busy
from deia_migration.code import prune
from deia_migration.crew import Crew, Report
from deia_migration.gates import Gates
from deia_migration.judge import Verdict
from deia_migration.log import Base
from deia_migration.mirror import Mirror
from deia_migration.outcome import Outcome
from deia_migration.plan import Plan
from deia_migration.rollout import Move, Phase, Rollout, Seen, apply, next_move
from deia_migration.sessions import SessionTable
from deia_migration.settings import MigrationSettings, VersionSettings
from deia_migration.split import Split
from deia_migration.traffic import Live, Router, Version
from deia_migration.versions import APP_NAME, AppHosted, VersionHost
from deia_migration.watchers import Watcher

logger = logging.getLogger("deia_migration")
_CANCELLED = 5.0
"""Seconds for cancelled tasks to end; what has not ended then is left to itself."""


class Engine:
    """One home's rollouts in this process. Everything here runs on the background loop, but `tell` and `follow`."""

    def __init__(self, host: Host, router: Router) -> None:
        self.host = host
        self.router = router
        self._table: SessionTable | None = None
        self._mirror: Mirror | None = None
        self.settings = MigrationSettings()
        self.rollout: Rollout | None = None
        self.base = Base()
        self.hosts: dict[str, VersionHost] = {}
        self.watcher: Watcher | None = None
        self.gates: Gates | None = None
        self.verdict: Verdict | None = None
        self.problem = ""
        self.driving = False
        self.book = Book(host)
        self.crew = Crew(host.home)
        self._wake = asyncio.Event()
        self._waking = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._start_error = ""
        self._unready = 0
        self._checked = 0.0
        self._moving = asyncio.Lock()
        self._running = False

    # -- made on first use: the settings say how -------------------------------------------------------------

    def table_of(self, settings: MigrationSettings) -> SessionTable:
        """The session table, of the size that the first settings say (a restart changes it)."""
        if self._table is None:
            self._table = SessionTable(self.host.home / "run" / "migration-sessions", settings.session_slots)
        return self._table

    @property
    def table(self) -> SessionTable:
        return self.table_of(self.settings)

    def mirror_of(self, settings: MigrationSettings) -> Mirror:
        """The mirror, of these settings."""
        if self._mirror is None:
            self._mirror = Mirror(self.host, settings.mirror)
        self._mirror.follow(settings.mirror)
        return self._mirror

    # -- life -----------------------------------------------------------------------------------------------

    async def open(self, settings: MigrationSettings) -> None:
        """Take up what the log says: the version that serves, and a rollout that is not over."""
        self.settings = settings
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._moving = asyncio.Lock()
        self._running = True
        await self.host.blocking(self.host.page.open)
        self.router.follow = self.follow
        self.router.state = self.host.page.state
        if any(text.startswith(("client:", "path:")) for text in settings.sessions):
            await self.host.blocking(self.table.open)  # sessions that clients make up are bound before any rollout
        await self._recover()
        self._spawn(self._watch_page(), "page")

    async def _watch_page(self) -> None:
        """Notice a rollout that another worker began also while no request comes here; a memory read each time."""
        clock, look = self.host.clock, self.host.page.state  # the host cannot be asked once its app is collected
        while self._running:
            await clock.sleep(float(self.settings.look))
            state = look()
            if state is not self.router.seen:
                self.router.refresh(state)

    async def close(self) -> None:
        """Stop everything that runs here; the log says how to go on."""
        self._running = False
        self._wake.set()  # before 3.12, wait_for may swallow a cancellation that comes with its result
        self.router.state = lambda: None
        self.router.seen = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCELLED)
        self.router.live = None
        self.router.base = self.router.app
        for hosted in list(self.hosts.values()):
            await hosted.stop()
        self.hosts.clear()
        await self.host.blocking(self.crew.remove)
        self.table.close()

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"deia-migration-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.problem = f"{task.get_name()} failed: {task.exception()!r}"
            logger.error("%s", self.problem, exc_info=task.exception())

    @property
    def active(self) -> bool:
        """Whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.phase.over

    async def _recover(self) -> None:
        """Start from what is written down."""
        state, self.base = await self.book.recover()
        if _promoted(self.base) and (state is None or self.base.name != state.candidate or state.phase.over):
            await self._host_base()
        if state is None or state.phase.over:
            self.rollout = state
            return
        await self._attach(state)

    async def _host_base(self) -> None:
        """Bring up the promoted version, which serves instead of the wrapped app."""
        hosted = self._make(self.base.name, self.base.target, self.base.digest)
        try:
            await hosted.start(lambda reason: self._poke())
            hosted.version.ready = True
        except Exception as error:
            self.problem = f"the promoted version {self.base.name} could not start ({error}): the app itself serves"
            logger.error("%s", self.problem)
            await hosted.stop()
            return
        self.hosts[self.base.name] = hosted
        self.router.base = hosted.version

    def _make(self, name: str, target: str, digest: str) -> VersionHost:
        if name == APP_NAME:
            return AppHosted(self.host, self.router.app, self.router.call_app)
        settings = self.settings.versions.get(name)
        if digest:  # deployed: the copy is what runs
            settings = VersionSettings(target=target, folder=str(self.host.home / "versions" / digest))
        elif settings is not None and settings.target != target:
            settings = None
        return VersionHost(self.host, name, target, digest, settings)

    # -- attaching: this worker takes part in a rollout -------------------------------------------------------

    async def _attach(self, state: Rollout) -> None:
        """Take part in a rollout: views, watcher, the candidate's start, and the wish to drive it."""
        if self.rollout is not None and self.rollout.id == state.id and self.router.live is not None:
            self.rollout = state
            return
        self.rollout = state
        await self.host.blocking(self.table.open)
        await self.host.blocking(self.crew.prepare)
        if _promoted(Base(state.stable)) and state.stable not in self.hosts:
            self.base = Base(state.stable, state.stable_target, state.stable_digest)
            await self._host_base()
        stable = self._stable(state)
        old = self.hosts.pop(state.candidate, None)
        if old is not None and old.version is not stable:
            await old.stop()
        hosted = self._make(state.candidate, state.target, state.digest)
        self.hosts[state.candidate] = hosted
        self._start_error = ""
        self._unready = 0
        self.verdict = None
        self.watcher = Watcher(self.settings, state.plan, self.poke_from_anywhere, lambda: self.driving)
        if self._mirror is not None:
            self._mirror.reset()
        self.watcher.condemned = partial(self._condemned, state.id)
        self.gates = Gates(self.host, self.settings, state.plan, self._mirror)
        self.router.live = Live(
            rollout=state.id,
            split=Split(state.id, str(os.getpid())),
            weight=state.weight,
            stable=stable,
            candidate=hosted.version,
        )
        self._starting = self._spawn(self._start_candidate(hosted), "start")
        self._spawn(self._attend(state.id), "attend")
        self._spawn(self._lead(state.id), "lead")

    def _stable(self, state: Rollout) -> Version:
        hosted = self.hosts.get(state.stable) if state.stable else None
        return hosted.version if hosted is not None else self.router.app

    async def _start_candidate(self, hosted: VersionHost) -> None:
        try:
            await hosted.start(lambda reason: self._poke())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._start_error = str(error) or type(error).__name__
        else:
            # It is given requests as soon as it answers; how many, the weight says.
            readiness = await hosted.ready()
            hosted.version.ready = readiness.ok
        self._poke()

    def _poke(self) -> None:
        self._waking = False
        self._wake.set()

    def poke_from_anywhere(self) -> None:
        """Have the rollout looked at now. Callable from any thread; many calls cost one wake-up."""
        loop = self._loop
        if loop is not None and not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._poke)

    def tell(self, outcome: Outcome) -> None:
        """What a layer tells of an answered request. Any thread."""
        watcher = self.watcher
        if watcher is not None:
            watcher.tell(outcome)

    def follow(self, state: Any) -> None:
        """The page has changed: take its weight at once; the rest follows on the background loop. Any thread."""
        field = state.get(FIELD) if state is not None else None
        if not isinstance(field, Mapping):
            return
        live = self.router.live
        if live is not None and field.get("rollout") == live.rollout:
            if field.get("latched"):
                self.router.latch(live.rollout)
            else:
                self.router.set_weight(float(field.get("weight", 0.0)))
        self.poke_from_anywhere()
        if live is None and field.get("rollout") and not field.get("over"):
            self.host.runtime.submit(self._catch_up)

    async def _catch_up(self) -> None:
        """Read the rollout that another worker has begun or moved."""
        if not self._running:
            return
        async with self._moving:
            await self._reload()

    async def _reload(self) -> None:
        state = await self.book.read()
        if state is None:
            return
        before = self.rollout
        if before is not None and before.id == state.id:
            self.rollout = state
            if state.phase is not before.phase:
                await self._entered(state)
        elif not state.phase.over:
            await self._attach(state)

    # -- attending: what every worker does --------------------------------------------------------------------

    async def _attend(self, rollout: str) -> None:
        """Follow the rollout in this worker, and drive it while this is the worker that holds the lease."""
        while self._running and self.active and self.rollout is not None and self.rollout.id == rollout:
            try:
                async with self._moving:
                    if self.book.changed():
                        await self._reload()
                    await self._tend()
                if self.driving:
                    await self._look()
            except StoreError as error:
                self.problem = f"the rollout stands still at its weight: {error}"
                logger.warning("%s", self.problem)
            except Exception as error:  # a defect must not leave a rollout unwatched
                self.problem = f"a look at the rollout failed: {error!r}"
                logger.exception("a look at the rollout failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), float(self.settings.tick))
            self._wake.clear()

    async def _tend(self) -> None:
        """Look after this worker's own part: readiness, requests that hang, the drain, the report."""
        state, live, watcher = self.rollout, self.router.live, self.watcher
        if state is None or live is None or watcher is None:
            return
        hosted = self.hosts.get(state.candidate)
        clock = self.host.clock
        started = self._starting is None or self._starting.done()
        due = clock.monotonic() - self._checked >= state.plan.guards.every
        if hosted is not None and started and not self._start_error and due:
            self._checked = clock.monotonic()
            readiness = await hosted.ready()
            self._unready = 0 if readiness.ok else self._unready + 1
            if not hosted.died and not state.latched:
                hosted.version.ready = readiness.ok
        watcher.hung((live.stable, live.candidate), clock.monotonic())
        leaving = live.candidate if state.latched else live.stable
        if state.phase in (Phase.PROMOTED, Phase.ROLLING_BACK):
            self._drain(state, leaving, max(0.0, clock.wall() - state.since))
        if not self.driving:
            self.crew.report(state.id, leaving.in_flight(), watcher.hand_over())

    async def _lead(self, rollout: str) -> None:
        """Drive while the lease is held: one worker at a time looks at the clock and decides."""
        while self._running and self.active and self.rollout is not None and self.rollout.id == rollout:
            try:
                async with self.host.store.lease("migration", float(self.settings.lease)) as lease:
                    await self.host.blocking(self.crew.listen, self._reported)
                    self.crew.attach(asyncio.get_running_loop())
                    self.driving = True
                    self._poke()
                    while self._running and self.active and not lease.lost:
                        await self.host.clock.sleep(float(self.settings.tick))
            except (StoreError, OSError) as error:
                self.problem = f"the rollout stands still at its weight: {error}"
                logger.warning("%s", self.problem)
                await self.host.clock.sleep(1.0)
            finally:
                self.driving = False
                self.crew.close()

    def _reported(self, report: Report) -> None:
        """What another worker saw."""
        watcher = self.watcher
        if watcher is not None and self.rollout is not None and report.rollout == self.rollout.id:
            for outcome in report.outcomes:
                watcher.take_over(outcome)

    def _condemned(self, rollout: str) -> None:
        """The judge has decided, in the request that failed: nothing new goes to the candidate. Any thread."""
        self.router.latch(rollout)
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.book.lower, rollout)

    # -- driving --------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """One look: everything that can be decided now is done."""
        async with self._moving:
            for _ in range(16):  # bounded: a plan has no more steps in a row that need no time
                state = self.rollout
                if state is None or state.phase.over:
                    return
                move = next_move(state, await self._see(state))
                if move is None:
                    self.problem = ""
                    return
                if not await self._act(state, move, SYSTEM):
                    return

    async def _see(self, state: Rollout) -> Seen:
        clock = self.host.clock
        now = clock.wall()
        hosted = self.hosts.get(state.candidate)
        live, watcher, gates = self.router.live, self.watcher, self.gates
        if hosted is None or live is None or watcher is None or gates is None:
            return Seen(now=now, crashed="it is not running in this process")
        self.verdict = watcher.judge(clock.monotonic())
        leaving = live.candidate if state.latched else live.stable
        waited = max(0.0, now - state.since)
        sessions = 0
        if state.phase in (Phase.PROMOTED, Phase.ROLLING_BACK):
            since = int(now - state.plan.limits.idle)
            sessions = await self.host.blocking(self.table.alive, leaving.number, since)
        else:
            await gates.look(state, hosted, now)
        return Seen(
            now=now,
            ready=hosted.version.ready,
            crashed=hosted.died or self._start_error,
            unready=self._unready,
            decision=self.verdict.decision,
            over_budget=watcher.over_budget(clock.monotonic()) if state.weight >= 1 else "",
            tests=gates.tests,
            mirror=gates.mirror,
            webhook=gates.webhook,
            idle=not leaving.in_flight() and not self.crew.in_flight(),
            sessions=sessions,
            leaving=waited,
        )

    def _drain(self, state: Rollout, leaving: Version, waited: float) -> None:
        """End what has run too long on a version that leaves."""
        limit = 0.0 if state.cut and state.latched else float(state.plan.limits.drain)
        if waited < limit:
            return
        now = self.host.clock.monotonic()
        for task, (context, _) in list(leaving.flights.items()):
            if now - context.received >= limit:
                leaving.cut(task)

    # -- acting ---------------------------------------------------------------------------------------------

    async def begin(self, name: str, target: str, digest: str, plan: Plan, actor: Actor, reason: str) -> Rollout:
        """Begin a rollout. Raises Problem 409 while another runs, 503 when it can't be written down."""
        async with self._moving:
            await self._reload_quietly()
            running = self.rollout
            if running is not None and not running.phase.over:
                raise busy(running)
            now = self.host.clock.wall()
            state = Rollout(
                id=uuid7(),
                plan=plan,
                candidate=name,
                target=target,
                digest=digest,
                stable=self.base.name,
                stable_target=self.base.target,
                stable_digest=self.base.digest,
                started=now,
                since=now,
                by=actor.id or actor.type,
                reason=reason,
            )
            fields = log.started_fields(state)
            await self.book.write(log.record(state, "started", now, fields=fields, actor=actor, reason=reason))
            try:
                await self.book.store(state)
            except StaleRevision:
                await self._reload()
                assert self.rollout is not None
                raise busy(self.rollout) from None
            await self._attach(state)
            return state

    async def _reload_quietly(self) -> None:
        with contextlib.suppress(StoreError):
            await self._reload()

    async def move(self, move: Move, actor: Actor) -> Rollout:
        """Do what a person asked for. Raises Problem when it could not be done."""
        if move.event == "rollback" and self.rollout is not None:
            self._lower(self.rollout.id)  # before any lock or disk
        async with self._moving:
            state = self.rollout
            if state is None or not await self._act(state, move, actor):
                raise Problem(503, f"'{move.event}' could not be done: {self.problem}", retry_after=1)
            assert self.rollout is not None
        self._poke()
        return self.rollout

    async def _act(self, state: Rollout, move: Move, actor: Actor) -> bool:
        """Do one move. False when it could not be done; then nothing has risen."""
        at = self.host.clock.wall()
        if move.event == "rollback":
            self._lower(state.id)
        after = apply(state, move.event, move.fields, at)
        if after == state and move.event not in ("gate", "paused", "resumed"):
            return False
        verdict, problem = self.verdict, ""
        entry = log.record(
            after,
            move.event,
            at,
            fields={**move.fields, **self._figures()},
            actor=actor if actor is not SYSTEM else None,
            reason=move.reason,
            evidence=verdict.evidence if verdict else None,
            verdict=str(verdict.decision) if verdict else "",
        )
        if move.raises:
            try:
                await self.book.write(entry)
            except Problem as error:
                self.problem = error.detail
                return False
            try:
                await self.book.store(after)
            except StaleRevision:
                await self._reload()
                return False
            except StoreError as error:
                self.problem = f"the weight was not raised: {error}"
                return False
        else:
            self.book.note(entry)
            problem = await self.book.store_lowering(after)
            if problem == "stale":
                await self._reload()
                return False
        self.rollout = after
        self.problem = problem
        if move.event != "retired" and self.router.live is not None:
            self.router.set_weight(after.weight)
        if after.weight != state.weight or move.event in ("rollback", "promoted"):
            self._emit(state, after, actor, move.reason)
        await self._entered(after)
        return True

    def _figures(self) -> dict[str, Any]:
        watcher = self.watcher
        return {"requests": attrs.asdict(watcher.counts), "p99_old": watcher.frozen_p99} if watcher else {}

    def _lower(self, rollout: str) -> None:
        """Nothing new to the candidate any more: here by one assignment, elsewhere by one write to the page."""
        self.router.latch(rollout)
        self.book.lower(rollout)

    def _emit(self, before: Rollout, after: Rollout, actor: Actor, reason: str) -> None:
        self.host.events.emit(
            WeightChanged(
                action=f"version.{'rolled_back' if after.latched else 'weight'}",
                target=Target("version", after.candidate),
                change={"weight": (before.weight, after.weight)},
                actor=actor,
                reason=reason,
                rollout=after.id,
                weight=after.weight,
            )
        )

    async def _entered(self, state: Rollout) -> None:
        """A phase was entered: what follows from it in this process."""
        live = self.router.live
        if live is None:
            return
        if state.phase is Phase.PROMOTED:
            self.base = Base(state.candidate, state.target, state.digest)
        elif state.phase is Phase.ROLLING_BACK:
            self.router.latch(state.id)
            self.base = Base(state.stable, state.stable_target, state.stable_digest)
            if state.cut:
                await self.host.blocking(self.table.drop, live.candidate.number)
                live.candidate.cut_all()
        elif state.phase.over:
            leaves = live.candidate if state.latched else live.stable
            stays = live.stable if state.latched else live.candidate
            self.router.base = stays
            self.router.live = None
            await self.host.blocking(self.table.drop, leaves.number)
            hosted = self.hosts.get(leaves.name)
            if hosted is not None and hosted.version is leaves:
                del self.hosts[leaves.name]
                leaves.cut_all()
                await hosted.stop()
            if self.gates is not None:
                await self.gates.close()
            in_use = frozenset((self.base.digest,)) - {""}
            await self.host.blocking(prune, self.host.home / "versions", self.settings.keep_code, in_use)


def _promoted(base: Base) -> bool:
    """Whether another version than the wrapped app serves."""
    return base.name not in ("", APP_NAME)
