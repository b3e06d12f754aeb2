"""`migration start|status|promote|pause|resume|rollback|history`: what an operator can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.plugin import Call, NoInput, Operation, Problem, Progress, Role
from deia_hardening.settings import setting
from deia_migration.service import MigrationManager, MigrationStatus


@attrs.frozen(kw_only=True)
class StartInput:
    """Which version, by which plan."""

    version: str = setting(attrs.NOTHING, "Name of a version in the settings.", ge=1, le=64)
    plan: str = setting("", "Name of a plan in the settings; '' is the default plan.", le=64)


@attrs.frozen(kw_only=True)
class DeployInput:
    """Which code, by which plan."""

    source: str = setting(attrs.NOTHING, "Folder with the code, or module:attribute.", ge=1, le=4096)
    app: str = setting("main:app", "module:attribute of the app in that folder.", ge=3, le=256)
    plan: str = setting("", "Name of a plan in the settings, or a YAML or JSON file; '' is the default plan.", le=4096)
    name: str = setting("", "Name of the new version; '' makes one from its digest.", le=64)
    folder: str = setting("", "Folder that relative paths start from; '' is the service's working folder.", le=4096)
    wait: bool = setting(False, "Stay until the rollout is over; a rollback is then an error (for CI).")


@attrs.frozen(kw_only=True)
class RolloutInput:
    """Which rollout is meant."""

    rollout: str = setting("", "Id of the rollout that is meant; a stale one is refused. '' is the running one.", le=64)


@attrs.frozen(kw_only=True)
class PromoteInput:
    """How far."""

    rollout: str = setting("", "Id of the rollout that is meant; a stale one is refused. '' is the running one.", le=64)
    full: bool = setting(False, "To 100% at once, past what is left of the plan.")


@attrs.frozen(kw_only=True)
class RollbackInput:
    """How hard."""

    rollout: str = setting("", "Id of the rollout that is meant; a stale one is refused. '' is the running one.", le=64)
    cut: bool = setting(False, "End the new version's streams and sessions too, instead of letting them drain.")


@attrs.frozen(kw_only=True)
class HistoryInput:
    """How much."""

    limit: int = setting(100, "Records to show, the last ones.", ge=1, le=10_000)


@attrs.frozen
class History:
    """Records of the migration's log, oldest first."""

    records: tuple[Mapping[str, Any], ...]


def operations(manager: MigrationManager) -> tuple[Operation, ...]:
    """The migration's operations."""

    async def start(value: StartInput, call: Call) -> MigrationStatus:
        plan = manager.plan_named(value.plan)
        if plan.pytest and not call.local:
            raise Problem(403, "a plan with the team's own pytest is started through the local socket only")
        await manager.start(value.version, plan=plan, reason=call.reason, actor=call.actor)
        return manager.status()

    async def deploy(value: DeployInput, call: Call) -> AsyncIterator[Progress | MigrationStatus]:
        working = Path(value.folder) if value.folder else None
        yield Progress("copying the code")
        begun = await manager.deploy(
            value.source,
            app=value.app,
            plan=await manager.plan_of(value.plan, working),
            name=value.name,
            working=working,
            reason=call.reason,
            actor=call.actor,
        )
        yield Progress(f"rollout {begun.id} of {begun.candidate} has begun")
        if value.wait:
            async for told in manager.follow(begun.id):
                yield told
        status = await manager.look()
        if value.wait and status.rollout != begun.id:
            raise Problem(409, f"rollout {begun.id} is over, and {status.rollout} runs; the history tells its end")
        if value.wait and status.latched:
            raise Problem(409, f"{begun.candidate} was rolled back: {status.reason}; the old version serves")
        yield status

    async def status(_: NoInput, call: Call) -> MigrationStatus:
        return await manager.look()

    async def promote(value: PromoteInput, call: Call) -> MigrationStatus:
        await manager.promote(full=value.full, rollout=value.rollout, reason=call.reason, actor=call.actor)
        return manager.status()

    async def pause(value: RolloutInput, call: Call) -> MigrationStatus:
        await manager.pause(rollout=value.rollout, reason=call.reason, actor=call.actor)
        return manager.status()

    async def resume(value: RolloutInput, call: Call) -> MigrationStatus:
        await manager.resume(rollout=value.rollout, reason=call.reason, actor=call.actor)
        return manager.status()

    async def rollback(value: RollbackInput, call: Call) -> MigrationStatus:
        await manager.rollback(cut=value.cut, rollout=value.rollout, reason=call.reason, actor=call.actor)
        return manager.status()

    async def history(value: HistoryInput, call: Call) -> History:
        return History(tuple(await manager.history(value.limit)))

    common: dict[str, Any] = {"role": Role.OPERATOR, "output": MigrationStatus}
    return (
        Operation(
            name="migration.start", summary="Begin to move traffic to a version of the settings.",
            handler=start, input=StartInput, **common,
        ),
        Operation(
            name="migration.deploy",
            summary="Copy code and roll it out beside the running version.",
            handler=deploy,
            input=DeployInput,
            local=True,
            **common,
        ),
        Operation(
            name="migration.status", summary="The rollout: phase, weight, evidence, versions.", role=Role.VIEWER,
            handler=status, output=MigrationStatus, changes=False,
        ),
        Operation(
            name="migration.promote", summary="Open the gate, or go to the next step; 'full' to 100%.",
            handler=promote, input=PromoteInput, **common,
        ),
        Operation(
            name="migration.pause", summary="Hold the weight; the judge goes on.",
            handler=pause, input=RolloutInput, **common,
        ),
        Operation(
            name="migration.resume", summary="Go on after a pause.", handler=resume, input=RolloutInput, **common
        ),
        Operation(
            name="migration.rollback", summary="Back to the version before, at once.",
            handler=rollback, input=RollbackInput, **common,
        ),
        Operation(
            name="migration.history", summary="The last records of the migration's log.", role=Role.VIEWER,
            handler=history, input=HistoryInput, output=History, changes=False,
        ),
    )  # fmt: skip
