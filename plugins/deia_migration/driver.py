"""Drives a rollout: looks, decides by the pure machine, acts, writes it down.

What raises the weight is journaled first, then done; what lowers it is done first (one assignment here, one write to
the page for the other workers) and journaled after. Any worker may act; the store's compare-and-set keeps one history,
and the lease makes one of them look at the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deia_hardening.events import WeightChanged
from deia_hardening.ids import uuid7
from deia_hardening.plugin import SYSTEM, Actor, Problem, Target
from deia_hardening.store import StaleRevision, StoreError
from deia_hardening.upstream import Readiness
from deia_migration import log
from deia_migration.book import busy, refuse_same, running
from deia_migration.crew import Report
from deia_migration.log import Base
from deia_migration.plan import Plan
from deia_migration.rollout import Move, Phase, Rollout, Seen, apply, next_move
from deia_migration.shield import PATIENCE
from deia_migration.traffic import Version
from deia_migration.view import View

if TYPE_CHECKING:
    from deia_migration.engine import Engine

logger = logging.getLogger("deia_migration")

Choose = Callable[[Rollout], "Move | None"]


class Driver:
    """One engine's part in deciding. For the background loop, but `condemned`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.driving = False
        self._unready = 0
        self._absent = 0.0
        self._checked = 0.0

    def reset(self) -> None:
        """Another rollout begins."""
        self._unready, self._absent = 0, 0.0

    # -- attending: what every worker does --------------------------------------------------------------------

    async def attend(self, rollout: str) -> None:
        """Follow the rollout in this worker, and drive it while this is the worker that holds the lease."""
        while self._engine.runs(rollout):
            try:
                async with self._engine.moving:
                    await self._engine.refresh()
                    await self._tend()
                    if not self.driving:
                        await self._ended_here()
                if self.driving:
                    await self._look()
            except StoreError as error:
                self._engine.problem = f"the rollout stands still at its weight: {error}"
                logger.warning("%s", self._engine.problem)
            except Exception as error:  # a defect must not leave a rollout unwatched
                self._engine.problem = f"a look at the rollout failed: {error!r}"
                logger.exception("a look at the rollout failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.wake.wait(), float(self._engine.settings.tick))
            self._engine.wake.clear()

    async def _tend(self) -> None:
        """Look after this worker's own part: readiness, requests that hang, the drain, the report."""
        state, live, watcher = self._engine.rollout, self._engine.router.live, self._engine.watcher
        if state is None or live is None or watcher is None:
            return
        hosted = self._engine.hosts.get(state.candidate)
        clock = self._engine.host.clock
        started = self._engine.starting is None or self._engine.starting.done()
        due = clock.monotonic() - self._checked >= state.plan.guards.every
        if hosted is not None and started and not self._engine.start_error and due:
            self._checked = clock.monotonic()
            readiness = await hosted.ready()
            self._count(readiness, state)
            if not state.latched and not (hosted.died and state.plan.guards.crash):
                hosted.version.ready = readiness.ok
                if readiness.ok and hosted.died:  # started again, and a crash is no reason to go back
                    hosted.died, hosted.version.lost = "", False
        gates = self._engine.gates
        if gates is not None:
            gates.tend(state)
        watcher.hung((live.stable, live.candidate), clock.monotonic())
        for task, since in list(live.candidate.held.items()):
            if clock.monotonic() - since > PATIENCE:
                live.candidate.cut(task)
        leaving = live.candidate if state.latched else live.stable
        if state.phase in (Phase.PROMOTED, Phase.ROLLING_BACK):
            self._drain(state, leaving, max(0.0, clock.wall() - state.since))
        if self.driving:
            view = View(state.id, self._engine.verdict, watcher.figures(), self._engine.problem)
            self._engine.view = None
            await self._engine.host.blocking(self._engine.shown.show, view)
        else:
            self._engine.view = await self._engine.host.blocking(self._engine.shown.look, state.id)
            mirrored = None if gates is None else gates.tell()
            self._engine.crew.report(state.id, leaving.number, leaving.in_flight(), watcher.hand_over(), mirrored)

    def _count(self, readiness: Readiness, state: Rollout) -> None:
        """Failed checks in a row. A child that its supervisor starts again (it was replaced, say) has time for that."""
        if readiness.ok:
            self._unready, self._absent = 0, 0.0
            return
        now = self._engine.host.clock.monotonic()
        if readiness.absent and state.target.startswith("process:"):
            self._absent = self._absent or now
            if now - self._absent < state.plan.limits.start:
                return
        self._unready += 1

    async def _ended_here(self) -> None:
        """The candidate has ended, or could not start, in this worker, which does not drive: nobody else may know."""
        state = self._engine.rollout
        hosted = self._engine.hosts.get(state.candidate) if state is not None else None
        if state is None or hosted is None or state.phase.over or state.latched:
            return
        crashed = hosted.died or self._engine.start_error
        if crashed and (state.plan.guards.crash or state.phase is Phase.STARTING):
            move = next_move(state, Seen(now=self._engine.host.clock.wall(), crashed=crashed))
            if move is not None:
                await self._act(state, move, SYSTEM)

    async def lead(self) -> None:
        """Drive while the lease is held and a rollout runs: one worker at a time looks at the clock and decides.

        It is one task in each worker, or the end of a rollout's would speak for the next.
        """
        while self._engine.running and self._engine.active:
            try:
                async with self._engine.host.store.lease("migration", float(self._engine.settings.lease)) as lease:
                    await self._engine.host.blocking(self._engine.crew.listen, self._reported)
                    self._engine.crew.attach(asyncio.get_running_loop())
                    self.driving = True
                    self._engine.poke()
                    while self._engine.running and self._engine.active and not lease.lost:
                        await self._engine.host.clock.sleep(float(self._engine.settings.tick))
            except (StoreError, OSError) as error:
                self._engine.problem = f"the rollout stands still at its weight: {error}"
                logger.warning("%s", self._engine.problem)
                await self._engine.host.clock.sleep(1.0)
            finally:
                self.driving = False
                self._engine.crew.close()

    def _reported(self, report: Report) -> None:
        """What another worker saw."""
        watcher = self._engine.watcher
        if watcher is not None and self._engine.rollout is not None and report.rollout == self._engine.rollout.id:
            for outcome in report.outcomes:
                watcher.take_over(outcome)
            if self._engine.gates is not None:
                self._engine.gates.take_over(report.pid, report.mirrored)

    def condemned(self, rollout: str) -> None:
        """The judge has decided, in the request that failed: nothing new goes to the candidate. Any thread."""
        self._engine.router.latch(rollout)
        loop = self._engine.loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._engine.book.lower, rollout)

    # -- driving --------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """One look: everything that can be decided now is done."""
        async with self._engine.moving:
            for _ in range(16):  # bounded: a plan has no more steps in a row that need no time
                state = self._engine.rollout
                if state is None or state.phase.over:
                    return
                move = next_move(state, await self._see(state))
                if move is None:
                    self._engine.problem = ""
                    return
                if not await self._act(state, move, SYSTEM):
                    return

    async def _see(self, state: Rollout) -> Seen:
        clock = self._engine.host.clock
        now = clock.wall()
        hosted = self._engine.hosts.get(state.candidate)
        live, watcher, gates = self._engine.router.live, self._engine.watcher, self._engine.gates
        if hosted is None or live is None or watcher is None or gates is None:
            return Seen(now=now, crashed="it is not running in this process")
        self._engine.verdict = watcher.judge(clock.monotonic())
        leaving = live.candidate if state.latched else live.stable
        waited = max(0.0, now - state.since)
        sessions, idle = 0, not leaving.in_flight()
        if state.phase in (Phase.PROMOTED, Phase.ROLLING_BACK):
            others = await self._engine.host.blocking(self._engine.crew.others)
            began = asyncio.get_running_loop().time() - waited
            limit = 0.0 if state.cut and state.latched else float(state.plan.limits.drain)
            idle = idle and self._engine.crew.idle(others, leaving.number, began, limit)
            since = int(now - state.plan.limits.idle)
            sessions = await self._engine.host.blocking(self._engine.table.alive, leaving.number, since)
        else:
            await gates.look(state, hosted, now)
        return Seen(
            now=now,
            ready=hosted.version.ready,
            crashed=hosted.died or self._engine.start_error,
            unready=self._unready,
            decision=self._engine.verdict.decision,
            over_budget=watcher.over_budget(clock.monotonic()) if state.weight >= 1 else "",
            tests=gates.tests,
            mirror=gates.mirror,
            webhook=gates.webhook,
            idle=idle,
            sessions=sessions,
            leaving=waited,
        )

    def _drain(self, state: Rollout, leaving: Version, waited: float) -> None:
        """End what has run too long on a version that leaves."""
        limit = 0.0 if state.cut and state.latched else float(state.plan.limits.drain)
        if waited < limit:
            return
        now = self._engine.host.clock.monotonic()
        for task, (context, _) in list(leaving.flights.items()):
            if now - context.received >= limit:
                leaving.cut(task)

    # -- acting ---------------------------------------------------------------------------------------------

    async def begin(self, name: str, target: str, digest: str, plan: Plan, actor: Actor, reason: str) -> Rollout:
        """Begin a rollout. Raises Problem 409 while another runs or where it serves, 503 when it can't be written."""
        async with self._engine.moving:
            try:
                await self._engine.refresh()
            except StoreError as error:
                raise Problem(503, f"{error}; nothing was changed", retry_after=1) from error
            running = self._engine.rollout
            if running is not None and not running.phase.over:
                raise busy(running)
            refuse_same(self._engine.base, Base(name, target, digest))
            now = self._engine.host.clock.wall()
            state = Rollout(
                id=uuid7(),
                plan=plan,
                candidate=name,
                target=target,
                digest=digest,
                stable=self._engine.base.name,
                stable_target=self._engine.base.target,
                stable_digest=self._engine.base.digest,
                started=now,
                since=now,
                by=actor.id or actor.type,
                reason=reason,
            )
            fields = log.started_fields(state)
            await self._engine.book.write(log.record(state, "started", now, fields=fields, actor=actor, reason=reason))
            try:
                await self._engine.book.store(state)
            except StaleRevision:
                self._withdraw(state, "another rollout had begun")
                await self._engine.reload()
                assert self._engine.rollout is not None
                raise busy(self._engine.rollout) from None
            except StoreError as error:
                self._withdraw(state, str(error))
                raise Problem(503, f"{error}; nothing was changed", retry_after=1) from error
            await self._engine.attach(state)
            return state

    def _withdraw(self, state: Rollout, why: str) -> None:
        """It is in the log, and never came into force."""
        at = self._engine.host.clock.wall()
        over = apply(state, "retired", {}, at)
        self._engine.book.note(log.record(over, "retired", at, reason=f"it did not begin: {why}"))

    async def move(self, choose: Choose, rollout: str, actor: Actor, lowers: bool = False) -> Rollout:
        """Do what a person asked for: `choose` says what that is for the rollout as it stands, None for nothing.

        `rollout` is the id that is meant, "" for the one that runs; `lowers` is a rollback. Raises Problem 409 for a
        rollout that is over, 503 where it could not be done, and what `choose` raises.
        """
        engine = self._engine
        known = engine.rollout
        if lowers and known is not None and not known.phase.over and rollout in ("", known.id):
            self._lower(known.id)  # before any lock or disk
        async with engine.moving:
            try:
                await engine.refresh()
            except StoreError as error:
                if not lowers:
                    raise Problem(503, f"{error}; nothing was changed", retry_after=1) from error
            while True:
                state = running(engine.rollout, rollout)
                move = choose(state)
                if move is None or await self._act(state, move, actor):
                    break
                if engine.rollout is state:
                    raise Problem(503, f"'{move.event}' could not be done: {engine.problem}", retry_after=1)
                if move.raises:  # what was asked for was meant for another step than the present one
                    raise Problem(409, "the rollout has moved on meanwhile; look at its status, then ask again")
        engine.poke()
        assert engine.rollout is not None
        return engine.rollout

    async def _act(self, state: Rollout, move: Move, actor: Actor) -> bool:
        """Do one move. False when it could not be done; then nothing has risen."""
        at = self._engine.host.clock.wall()
        if move.event == "rollback":
            self._lower(state.id)
        after = apply(state, move.event, move.fields, at)
        if after == state and move.event not in ("gate", "paused", "resumed"):
            return False
        verdict, problem = self._engine.verdict, ""
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
                await self._engine.book.write(entry)
            except Problem as error:
                self._engine.problem = error.detail
                return False
            try:
                await self._engine.book.store(after)
            except StaleRevision:
                await self._engine.reload()
                return False
            except StoreError as error:
                self._engine.problem = f"the weight was not raised: {error}"
                return False
        else:
            self._engine.book.note(entry)
            problem = await self._engine.book.store_lowering(after)
            if problem == "stale":
                await self._engine.reload()
                return False
        self._engine.rollout = after
        self._engine.problem = problem
        if move.event != "retired" and self._engine.router.live is not None:
            self._engine.router.set_weight(after.weight)
        if after.weight != state.weight or move.event in ("rollback", "promoted"):
            self._emit(state, after, actor, move.reason)
        await self._engine.entered(after)
        return True

    def _figures(self) -> dict[str, Any]:
        watcher = self._engine.watcher
        return {"requests": watcher.figures(), "p99_old": watcher.frozen_p99} if watcher else {}

    def _lower(self, rollout: str) -> None:
        """Nothing new to the candidate any more: here by one assignment, elsewhere by one write to the page."""
        self._engine.router.latch(rollout)
        self._engine.book.lower(rollout)

    def _emit(self, before: Rollout, after: Rollout, actor: Actor, reason: str) -> None:
        self._engine.host.events.emit(
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
