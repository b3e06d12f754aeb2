"""What a handler calls: `record`, `audited`, `auditing`. With the audit plugin off they do nothing.

Actor, reason and trace are those of the running request; they carry into background tasks and threads with the
context variable.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import attrs

from deia_audit.service import AuditLogger
from deia_hardening.access import live_services
from deia_hardening.context import context_variable
from deia_hardening.journal import Receipt
from deia_hardening.plugin import Target

P = ParamSpec("P")
R = TypeVar("R")


class NoReceipt:
    """The receipt of a record that nobody keeps, since the audit plugin is off: done, and without a number."""

    seq: int | None = None

    async def durable(self) -> None:
        """Return at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def done(self) -> bool:
        return True


_NO_RECEIPT = NoReceipt()


def _logger() -> AuditLogger | None:
    context = context_variable.get()
    services = context.revision.services if context is not None else live_services()
    return cast("AuditLogger | None", services.table.get(AuditLogger)) if services is not None else None


def record(
    action: str,
    *,
    target: Target | tuple[str, str] | None = None,
    change: Mapping[str, tuple[Any, Any]] | None = None,
    reason: str = "",
    outcome: str = "success",
    kind: str = "bot",
    **detail: Any,
) -> Receipt | NoReceipt:
    """Record something that the service did; see `AuditLogger.record`. Never blocks, never raises.

    Example:
        record("bot.assigned", target=("bot", bot_id), reason="capacity")
    """
    logger = _logger()
    if logger is None:
        return _NO_RECEIPT
    return logger.record(action, target=target, change=change, reason=reason, outcome=outcome, kind=kind, **detail)


@attrs.define
class Entry:
    """What `auditing` will record when its block ends; fill in what becomes known on the way."""

    action: str
    target: Target | tuple[str, str] | None = None
    change: dict[str, tuple[Any, Any]] = attrs.field(factory=dict)
    reason: str = ""
    outcome: str = "success"
    kind: str = "bot"
    detail: dict[str, Any] = attrs.field(factory=dict)


@contextmanager
def auditing(
    action: str,
    *,
    target: Target | tuple[str, str] | None = None,
    reason: str = "",
    kind: str = "bot",
    **detail: Any,
) -> Iterator[Entry]:
    """Record `action` when the block ends, with its outcome; an exception is recorded by its type and goes on.

    Example:
        with auditing("bot.launch", target=("bot", "b7")) as entry:
            entry.change["state"] = ("stopped", "running")
    """
    entry = Entry(action, target, {}, reason, "success", kind, dict(detail))
    try:
        yield entry
    except BaseException as error:
        entry.outcome = "failure"
        entry.detail["error"] = type(error).__qualname__
        raise
    finally:
        record(
            entry.action,
            target=entry.target,
            change=entry.change,
            reason=entry.reason,
            outcome=entry.outcome,
            kind=entry.kind,
            **entry.detail,
        )


def _about(
    target: Callable[..., Target | tuple[str, str] | None] | None, args: Any, kwargs: Any
) -> Target | tuple[str, str] | None:
    """Return what a call is about; a slip in naming it does not take the call with it."""
    try:
        return target(*args, **kwargs) if target is not None else None
    except Exception as error:
        return ("unknown", f"({type(error).__qualname__})")


def audited(
    action: str,
    *,
    target: Callable[..., Target | tuple[str, str] | None] | None = None,
    reason: str = "",
    kind: str = "bot",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Record each call of a function (plain or async) as `action`, with its outcome.

    `target` is called with the function's arguments and names what the call is about; should it raise, the call goes
    on.

    Example:
        @audited("bot.stop", target=lambda bot_id: ("bot", bot_id))
        async def stop(bot_id: str) -> None: ...
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                about = _about(target, args, kwargs)
                with auditing(action, target=about, reason=reason, kind=kind):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", call_async)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            about = _about(target, args, kwargs)
            with auditing(action, target=about, reason=reason, kind=kind):
                return function(*args, **kwargs)

        return call

    return decorate
