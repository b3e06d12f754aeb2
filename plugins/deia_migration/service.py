"""`MigrationManager`: what the service's own code, the operations and the tests call.

All methods may be awaited on any loop (they run on the background loop); reading properties costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.errors import SettingsError
from deia_hardening.plugin import SYSTEM, Actor, Host, Problem, Progress
from deia_hardening.store import StoreError
from deia_migration import log
from deia_migration.book import busy
from deia_migration.code import CodeError, copy_code, locate
from deia_migration.driver import Choose
from deia_migration.engine import Engine
from deia_migration.plan import Plan, read_plan
from deia_migration.rollout import Move, Rollout, promote_by_hand, rollback_move
from deia_migration.settings import MigrationSettings, problem_of_name
from deia_migration.traffic import Router
from deia_migration.versions import APP_NAME


@attrs.frozen(kw_only=True)
class VersionStatus:
    """One version: its name, what answers, whether it does, its share of new keys, requests in progress here."""

    name: str
    target: str
    role: str
    ready: bool
    weight: float
    in_flight: int


@attrs.frozen(kw_only=True)
class MigrationStatus:
    """One look at the migration. `rollout` is "" when there never was one; `evidence` as in the log.

    `requests` are counts, mean waits and p99 of the last answers (seconds) in the worker that leads; `rolls_back_at`
    is the E at which the judge rolls back.
    """

    rollout: str = ""
    phase: str = "none"
    weight: float = 0.0
    step: int = -1
    steps: int = 0
    paused: bool = False
    certified: bool = False
    latched: bool = False
    by: str = ""
    reason: str = ""
    problem: str = ""
    verdict: str = ""
    versions: tuple[VersionStatus, ...] = ()
    evidence: Mapping[str, Any] = attrs.field(factory=dict)
    requests: Mapping[str, Any] = attrs.field(factory=dict)
    rolls_back_at: float = 0.0


class MigrationManager:
    """Moves traffic from one version to another.

    Example:
        manager = current(MigrationManager)
        await manager.start("v2", reason="new model")
        await manager.rollback(reason="users complain")
    """

    def __init__(self, host: Host, router: Router, engine: Engine) -> None:
        self._host = host
        self._router = router
        self._engine = engine

    # -- reading --------------------------------------------------------------------------------------------

    @property
    def rollout(self) -> Rollout | None:
        """The present rollout, or the last one of this home, or None."""
        return self._engine.rollout

    def version_for(self, key: str) -> str:
        """The version that new work with this key goes to: for queues of the service's own. "" is the app itself."""
        live = self._router.live
        if live is None:
            return self._router.base.name
        return (live.candidate if live.candidate.ready and live.split.new(key, live.weight) else live.stable).name

    def status(self) -> MigrationStatus:
        """What is going on, now. Callable from any thread."""
        engine, live = self._engine, self._router.live
        state = engine.rollout
        base = self._router.base
        if state is None:
            return MigrationStatus(problem=engine.problem, versions=(_version(base, "stable", 1.0),))
        versions: tuple[VersionStatus, ...] = (_version(base, "stable", 1.0),)
        if live is not None:
            versions = (
                _version(live.stable, "stable", 1.0 - live.weight),
                _version(live.candidate, "candidate", live.weight),
            )
        view = engine.view if not engine.driving else None
        if view is not None and view.rollout != state.id:
            view = None
        verdict = view.verdict if view is not None else engine.verdict
        watcher = engine.watcher
        figures = view.requests if view is not None else watcher.figures() if watcher else {}
        return MigrationStatus(
            rollout=state.id,
            phase=str(state.phase),
            weight=live.weight if live is not None else state.weight,
            step=state.step,
            steps=len(state.plan.steps),
            paused=state.paused,
            certified=state.certified,
            latched=state.latched,
            by=state.by,
            reason=state.reason,
            problem=engine.problem or (view.problem if view is not None else ""),
            verdict=str(verdict.decision) if verdict else "",
            versions=versions,
            evidence=attrs.asdict(verdict.evidence) if verdict else {},
            requests=figures,
            rolls_back_at=round(1 / float(state.plan.judge.alpha), 3),
        )

    async def look(self) -> MigrationStatus:
        """`status`, after another worker's latest word was taken up."""
        if not self._engine.moving.locked():  # else it is being moved, here and now
            with contextlib.suppress(StoreError):  # then it is told what is known
                await self._host.runtime.run(self._engine.catch_up)
        return self.status()

    async def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """The last `limit` records of `migration-log.jsonl`, oldest first."""

        journal = self._host.journal(log.NAME)

        def read() -> list[dict[str, Any]]:
            journal.drain(1.0)  # what has just happened is in it too
            found = [{"seq": seq, **event} for seq, event in log.records(self._engine.book.log_path)]
            return found[-limit:]

        return await self._host.blocking(read)

    # -- doing ----------------------------------------------------------------------------------------------

    async def start(
        self, version: str, *, plan: Plan | str | None = None, reason: str = "", actor: Actor = SYSTEM
    ) -> Rollout:
        """Begin a rollout of a version of the settings, by `plan` (an object, a plan's name, or None: the default).

        It returns once the rollout is written down; the version starts meanwhile. Raises Problem 404 for an
        unknown version or plan, 409 while another rollout runs, 503 when it can't be written down.
        """
        settings = self._host.settings(MigrationSettings)
        found = settings.versions.get(version)
        if found is None and version != APP_NAME:
            known = ", ".join(sorted(settings.versions)) or "none"
            raise Problem(404, f"no version {version!r} in the settings; there are: {known}; nothing was changed")
        chosen = _plan(settings, plan)
        target = found.target if found is not None else ""
        return await self._host.runtime.run(self._engine.driver.begin, version, target, "", chosen, actor, reason)

    async def deploy(
        self,
        source: str,
        *,
        app: str = "main:app",
        plan: Plan | str | None = None,
        name: str = "",
        working: Path | None = None,
        reason: str = "",
        actor: Actor = SYSTEM,
    ) -> Rollout:
        """Copy code and roll it out as a process of its own, beside the running one.

        `source` is a folder (with `app` in it) or `module:attribute`; the copy in `.deia/versions/<digest>` is what
        runs from then on, also after a restart. Raises Problem 422 for code that can't be deployed, 409 and 503 as
        `start`.
        """
        settings = self._host.settings(MigrationSettings)
        chosen = _plan(settings, plan)

        def copy() -> tuple[str, str]:
            folder, target = locate(source, app, working or Path.cwd())
            digest = copy_code(
                folder,
                self._host.home / "versions",
                most_files=settings.code_files,
                most_bytes=int(settings.code_bytes),
            )
            return digest, target

        if name and (problem := problem_of_name(name)):
            raise Problem(422, f"{name!r} {problem}; nothing was deployed")
        running = self._engine.rollout
        if running is not None and not running.phase.over:
            raise busy(running)  # for sure, or it is seen at the start: nothing is copied in vain
        try:
            digest, target = await self._host.blocking(copy)
        except (CodeError, OSError) as error:
            raise Problem(422, f"{error}; nothing was deployed") from error
        return await self._host.runtime.run(
            self._engine.driver.begin, name or f"v-{digest[:8]}", f"process:{target}", digest, chosen, actor, reason
        )

    def plan_named(self, name: str) -> Plan:
        """The plan of this name in the settings, '' for the default one. Raises Problem 404."""
        return _plan(self._host.settings(MigrationSettings), name)

    async def plan_of(self, text: str, working: Path | None = None) -> Plan:
        """The plan that `--plan` means: a name in the settings, else a YAML or JSON file.

        Raises Problem 404 for neither, 422 with every located problem of the file.
        """
        settings = self._host.settings(MigrationSettings)
        if not text or text in settings.plans:
            return _plan(settings, text)
        path = (working or Path.cwd()) / Path(text).expanduser()
        if not await self._host.blocking(path.is_file):
            return _plan(settings, text)  # refuses, naming the plans that there are
        try:
            plan = await self._host.blocking(read_plan, path)
        except SettingsError as error:
            raise Problem(422, f"the plan was refused, nothing was changed:\n{error}") from error
        for step in plan.steps:
            if step.webhook and step.webhook not in settings.webhooks:
                raise Problem(422, f"the plan names the webhook {step.webhook!r}, which the settings do not declare")
        return plan

    async def follow(self, rollout: str) -> AsyncIterator[Progress]:
        """Each change of a rollout until it is over. Background loop only."""
        before = ""
        while True:
            state, live = self._engine.rollout, self._router.live
            if state is None or state.id != rollout:
                return
            weight = live.weight if live is not None else state.weight
            now = f"{state.phase} at {weight:.4g}" + (f": {self._engine.problem}" if self._engine.problem else "")
            if now != before:
                before = now
                yield Progress(now, weight)
            if state.phase.over:
                return
            await self._host.clock.sleep(float(self._engine.settings.tick))

    async def promote(
        self, *, full: bool = False, rollout: str = "", reason: str = "", actor: Actor = SYSTEM
    ) -> Rollout:
        """Open the present gate, or go to the next step; with `full` to 100% at once. Raises Problem 409."""

        def choose(state: Rollout) -> Move:
            if not full and not state.latched and _waits_at_gate(state):
                return Move(event="gate", fields={"step": state.step}, reason=reason or "promoted by hand")
            move = promote_by_hand(state, full=full)
            if isinstance(move, str):
                raise Problem(409, f"{state.candidate} can't be promoted: {move}")
            return attrs.evolve(move, reason=reason or "promoted by hand")

        return await self._do(choose, rollout, actor)

    async def pause(self, *, rollout: str = "", reason: str = "", actor: Actor = SYSTEM) -> Rollout:
        """Hold the weight. The judge goes on: a paused version that is worse is still rolled back."""
        move = Move(event="paused", reason=reason or "paused by hand")
        return await self._do(lambda state: move, rollout, actor)

    async def resume(self, *, rollout: str = "", reason: str = "", actor: Actor = SYSTEM) -> Rollout:
        """Go on after `pause`."""
        move = Move(event="resumed", reason=reason or "resumed by hand")
        return await self._do(lambda state: move, rollout, actor)

    async def rollback(
        self, *, cut: bool = False, rollout: str = "", reason: str = "", actor: Actor = SYSTEM
    ) -> Rollout:
        """Back to the version before, at once; `cut` ends its streams and sessions too. Never waits for a disk."""
        move = rollback_move(reason or "rolled back by hand", cut=cut)
        return await self._do(lambda state: None if state.latched else move, rollout, actor, lowers=True)

    async def _do(self, choose: Choose, rollout: str, actor: Actor, lowers: bool = False) -> Rollout:
        return await self._host.runtime.run(self._engine.driver.move, choose, rollout, actor, lowers)


def _waits_at_gate(state: Rollout) -> bool:
    steps = state.plan.steps
    return 0 <= state.step < len(steps) and bool(steps[state.step].gate) and not state.gate_open


def _plan(settings: MigrationSettings, plan: Plan | str | None) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if not plan:
        return settings.plan
    found = settings.plans.get(plan)
    if found is None:
        known = ", ".join(sorted(settings.plans)) or "none"
        raise Problem(404, f"no plan {plan!r} in the settings; there are: {known}; nothing was changed")
    return found


def _version(version: Any, role: str, weight: float) -> VersionStatus:
    return VersionStatus(
        name=version.label,
        target=version.target or "the app itself",
        role=role,
        ready=version.ready,
        weight=round(weight, 6),
        in_flight=version.in_flight(),
    )
