"""What the control plane shows and calls: every plugin's operations, health, and the core's own status.

The control plugin, the command line and tests use this one object; it is found as a service.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import attrs

from deia_hardening.errors import NotStarted
from deia_hardening.events import OperationInvoked, Target
from deia_hardening.operations import Call, NoInput, Operation, Progress, Role
from deia_hardening.plugin import Health, HealthState
from deia_hardening.problem import Problem
from deia_hardening.workers import restart_operation

if TYPE_CHECKING:
    from deia_hardening.lifecycle import Core


@attrs.frozen
class Status:
    """One look at a running service."""

    name: str
    state: str
    revision: int
    digest: str
    pid: int
    python: str
    home: str
    plugins: Mapping[str, Mapping[str, Any]]
    layers: tuple[str, ...]


@attrs.frozen
class ReloadInput:
    """Nothing to say but why (the call's reason)."""


@attrs.frozen
class ReloadOutput:
    """The running revision after the reload."""

    revision: int
    digest: str


class Surface:
    """Operations, health and status of one hardened app. Thread-safe; `invoke` awaits on any loop."""

    def __init__(self, core: ReferenceType[Core]) -> None:
        self._reference = core

    @property
    def _core(self) -> Core:
        core = self._reference()
        if core is None:
            raise NotStarted("the hardened app is gone")
        return core

    def operations(self) -> dict[str, Operation]:
        """Every operation of every plugin that is on, by name."""
        found = {operation.name: operation for operation in self._own()}
        for plugin in self._core.plugins.values():
            for operation in plugin.operations():
                found.setdefault(operation.name, operation)
        return found

    def _own(self) -> tuple[Operation, ...]:
        return (
            Operation(
                name="service.status",
                summary="What runs: revision, plugins, health, layers.",
                role=Role.VIEWER,
                handler=self._status,
                output=Status,
                changes=False,
            ),
            Operation(
                name="service.reload",
                summary="Read the settings anew and switch to them.",
                role=Role.OPERATOR,
                handler=self._reload,
                input=ReloadInput,
                output=ReloadOutput,
            ),
            restart_operation(self._core.services),
        )

    async def _status(self, _: NoInput, call: Call) -> Status:
        return self.status()

    async def _reload(self, _: ReloadInput, call: Call) -> ReloadOutput:
        revision = await self._core.propose(None, "operation", call.actor, call.reason)
        return ReloadOutput(revision.number, revision.digest)

    def health(self) -> dict[str, Health]:
        """Each plugin's health, the core's under `core`."""
        return self._core.health()

    def ready(self) -> bool:
        """Started, not stopping, and nothing FAILED."""
        core = self._core
        return (
            core.ready and not core.leaving and all(h.state is not HealthState.FAILED for h in core.health().values())
        )

    def status(self) -> Status:
        core = self._core
        plugins = {
            name: {"state": health.state.value, "detail": health.detail, **health.figures}
            for name, health in core.health().items()
        }
        return Status(
            name=core.name,
            state="ready" if core.ready else "stopped",
            revision=core.revision.number,
            digest=core.revision.digest,
            pid=os.getpid(),
            python=platform.python_version(),
            home=str(core.home.path),
            plugins=plugins,
            layers=core.revision.layers,
        )

    async def invoke(self, name: str, value: Any, call: Call) -> AsyncIterator[Any]:
        """Run operation `name` with the input object `value`: yields `Progress` objects, last the output.

        Call it on the background loop. The role is the caller's business (`Operation.role`); the outcome is an
        event `OperationInvoked` when the operation changes something. Raises `Problem` as the handler does.
        """
        operation = self.operations().get(name)
        if operation is None:
            raise Problem(404, f"there is no operation '{name}'; its plugin may be off")
        outcome, detail = "success", ""
        try:
            result = operation.handler(value, call)
            if inspect.isasyncgen(result) or isinstance(result, AsyncIterator):
                async for step in result:
                    yield step
            else:
                yield await result
        except Problem as problem:
            outcome, detail = "refused", problem.detail
            raise
        except Exception as error:
            outcome, detail = "failure", f"{type(error).__name__}: {error}"
            raise
        finally:
            if operation.changes:
                self._core.events.emit(
                    OperationInvoked(
                        action=f"operation.{name}",
                        operation=name,
                        actor=call.actor,
                        reason=call.reason or detail,
                        outcome=outcome,
                        target=Target("operation", name),
                    )
                )


__all__ = ["Progress", "ReloadInput", "ReloadOutput", "Status", "Surface"]
