"""`service.restart`: the workers of the server replaced one by one, by whoever keeps them.

`deia-hardening run` provides a `Workers` service in each of its workers; under any other server there is none, and the
operation says so. See `deia_hardening/cli/supervisor.py` for how no request is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import attrs

from deia_hardening.operations import Call, Operation, Progress, Role
from deia_hardening.problem import Problem
from deia_hardening.services import Services


class Workers(Protocol):
    """Who keeps the workers of this service."""

    def restart(self) -> AsyncIterator[Progress | list[int]]:
        """Start a fresh worker for each, then retire the old ones: progress, last the new process ids.

        Background loop. Raises Problem 409 while it is being done already, 503 when a new worker did not start (the
        old ones serve on).
        """


@attrs.frozen
class RestartInput:
    """Nothing to say but why (the call's reason)."""


@attrs.frozen
class RestartOutput:
    """The process ids of the new workers; the old ones answer what they have begun, then end."""

    workers: tuple[int, ...]


def restart_operation(services: Services) -> Operation:
    """The operation, of the app with these services."""

    async def restart(_: RestartInput, call: Call) -> AsyncIterator[Progress | RestartOutput]:
        keeper = services.get(Workers)
        if keeper is None:
            raise Problem(409, "this service does not run under 'deia-hardening run': its own server restarts it")
        async for told in keeper.restart():
            yield told if isinstance(told, Progress) else RestartOutput(tuple(told))

    return Operation(
        name="service.restart",
        summary="Replace the workers one by one with fresh ones (new code, new package); no request is lost.",
        role=Role.ADMIN,
        handler=restart,
        input=RestartInput,
        output=RestartOutput,
    )
