"""What an operator can do: see, pin and unpin the mode, drain and restore bots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from deia_degradation.modes import describe
from deia_degradation.pool.pool import Pool
from deia_degradation.service import DegradationManager
from deia_hardening.plugin import Call, Mode, NoInput, Operation, Problem, Role
from deia_hardening.settings import Seconds, setting


@attrs.frozen
class DegradationStatus:
    """Everything at one look: mode and why, signals, admission, threads of sync endpoints, pools."""

    mode: str
    since_seconds: float
    automatic: str
    cause: str
    demand: Mapping[str, Any] | None
    signals: Mapping[str, Any]
    admission: Mapping[str, Any]
    threads: Sequence[Mapping[str, Any]]
    pools: Mapping[str, Any]
    quotas: Mapping[str, Any]
    """By pool and quota key: what counts against its bounds now, of all workers of the machine."""


@attrs.frozen
class ModeOutput:
    """The mode in force and what asks for it."""

    mode: str
    automatic: str
    cause: str
    demand: Mapping[str, Any] | None


@attrs.frozen
class PinInput:
    """Which mode, for how long."""

    mode: Literal["FULL", "DEGRADED", "MAINTENANCE"] = setting(attrs.NOTHING, "The mode to hold.")
    ttl: Seconds | None = setting(None, "For how long; without, as the setting modes.pin says.")


@attrs.frozen
class BotInput:
    """Which bot of which pool."""

    pool: str = setting(attrs.NOTHING, "The pool's name.", ge=1)
    bot: str = setting(attrs.NOTHING, "The bot's id.", ge=1)


@attrs.frozen
class BotOutput:
    """The bot's state now."""

    pool: str
    bot: str
    state: str


@attrs.frozen
class ScalingOutput:
    """What a scaler should do now."""

    suggestion: str
    allowed: bool
    cooldown: float
    reason: str
    signals: Mapping[str, float]


def operations(manager: Callable[[], DegradationManager]) -> Sequence[Operation]:
    """The operations of this plugin; `manager` gives the running one."""

    async def status(_: NoInput, call: Call) -> DegradationStatus:
        return DegradationStatus(**manager().status())

    async def mode(_: NoInput, call: Call) -> ModeOutput:
        return _mode(manager())

    async def pin(given: PinInput, call: Call) -> ModeOutput:
        seconds = None if given.ttl is None else float(given.ttl)
        try:
            await manager().pin(Mode(given.mode), seconds=seconds, actor=call.actor, reason=call.reason)
        except ValueError as error:
            raise Problem(422, str(error)) from error
        return _mode(manager())

    async def unpin(_: NoInput, call: Call) -> ModeOutput:
        if not await manager().unpin(actor=call.actor, reason=call.reason):
            raise Problem(409, "the mode is not pinned; nothing was changed")
        return _mode(manager())

    async def drain(given: BotInput, call: Call) -> BotOutput:
        return await _on_bot(manager(), given, call, manager().drains.drain)

    async def restore(given: BotInput, call: Call) -> BotOutput:
        return await _on_bot(manager(), given, call, manager().drains.restore)

    async def scaling(_: NoInput, call: Call) -> ScalingOutput:
        return ScalingOutput(**attrs.asdict(manager().evaluate(), recurse=False))

    return (
        Operation(
            name="degradation.status",
            summary="Mode and why, signals, admission, pools.",
            role=Role.VIEWER,
            handler=status,
            output=DegradationStatus,
            changes=False,
        ),
        Operation(
            name="degradation.mode",
            summary="The mode in force and what asks for it.",
            role=Role.VIEWER,
            handler=mode,
            output=ModeOutput,
            changes=False,
        ),
        Operation(
            name="degradation.pin",
            summary="Hold a mode for some time, on every worker.",
            role=Role.OPERATOR,
            handler=pin,
            input=PinInput,
            output=ModeOutput,
            confirm="This changes how every request is served. Pin the mode?",
        ),
        Operation(
            name="degradation.unpin",
            summary="End the pin; the signals decide again.",
            role=Role.OPERATOR,
            handler=unpin,
            output=ModeOutput,
        ),
        Operation(
            name="degradation.drain",
            summary="Send nothing more to a bot of a pool, on every worker.",
            role=Role.OPERATOR,
            handler=drain,
            input=BotInput,
            output=BotOutput,
        ),
        Operation(
            name="degradation.restore",
            summary="End a bot's drain on every worker, its ejection or rest in the one that is asked.",
            role=Role.OPERATOR,
            handler=restore,
            input=BotInput,
            output=BotOutput,
        ),
        Operation(
            name="degradation.evaluate",
            summary="What a scaler should do now, and whether it may.",
            role=Role.VIEWER,
            handler=scaling,
            output=ScalingOutput,
            changes=False,
        ),
    )


def _mode(manager: DegradationManager) -> ModeOutput:
    mode = manager.mode
    state = manager.control.state
    return ModeOutput(
        mode.value, state.automatic.value, state.cause, describe(state.demand, manager.host.clock.monotonic())
    )


async def _on_bot(
    manager: DegradationManager, given: BotInput, call: Call, action: Callable[[Pool, str, str], Awaitable[bool]]
) -> BotOutput:
    try:
        pool = manager.pool(given.pool)
    except LookupError as error:
        raise Problem(404, str(error)) from error
    if not await action(pool, given.bot, call.reason or f"by {call.actor.id}"):
        raise Problem(404, f"the pool '{given.pool}' has no bot '{given.bot}'; nothing was changed")
    member = pool.member(given.bot)
    state = "removed" if member is None else member.state(manager.host.clock.monotonic()).value
    return BotOutput(given.pool, given.bot, state)
