"""Audit between a front and its version processes: records go up the pipe, and the front's trail keeps them.

A version process has no journal, no key and no evidence; the front numbers, pseudonymises and seals. There a receipt
is durable when the front's disk has the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from deia_audit.service import RESERVED_PREFIX, AuditLogger
from deia_hardening.context import SYSTEM, RequestContext, context_variable
from deia_hardening.journal import JournalError, Receipt
from deia_hardening.plugin import Actor, Completion, Event, Host, Latch

if TYPE_CHECKING:
    from deia_hardening.upstream.inner import Link

_NAMES = ("type", "id", "auth", "session", "on_behalf_of")
_TEXTS = ("action", "kind", "outcome", "level", "reason", "request", "mode", "version", "event")


class SentReceipt:
    """The receipt of a record that went to the front. Any thread and any loop."""

    seq: int | None = None
    """The front numbers records; the number stays there."""

    def __init__(self) -> None:
        self._known = Latch()
        self._why = ""

    def tell(self, why: str) -> None:
        """The record's fate: "" when the front's disk has it, else why not."""
        self._why = why
        self._known.set()

    def done(self) -> bool:
        return self._known.is_set()

    async def durable(self) -> None:
        """Return once the front's disk has the record. Raises JournalError when it is not known to."""
        await self._known.wait()
        if self._why:
            raise JournalError(self._why)

    def wait(self, timeout: float | None = None) -> bool:
        """`durable()` for threads; False when `timeout` seconds passed first."""
        if not self._known.wait_blocking(timeout):
            return False
        if self._why:
            raise JournalError(self._why)
        return True


class SendingLogger(AuditLogger):
    """What `current(AuditLogger)` finds in a version process."""

    def __init__(self, host: Host, link: Link) -> None:
        super().__init__(host)
        self._link = link

    def record_event(self, event: Event) -> None:
        """Send an event of this process up; its own starting, stopping and reloading are not the service's."""
        if event.kind != "system":
            super().record_event(event)

    def _append(self, members: dict[str, Any], actor: Actor | None, reason: str) -> Receipt:
        context: RequestContext | None = context_variable.get()
        if context is not None:
            actor = actor or context.actor
            reason = reason or context.reason
            members["request"] = context.id
            members["mode"] = context.mode.value
            if context.version:
                members["version"] = context.version
        if reason:
            members["reason"] = reason
        receipt = SentReceipt()
        sent = {"members": members, "actor": attrs.asdict(actor or SYSTEM) | {"roles": []}}
        if not self._link.record(sent, receipt.tell):
            receipt.tell("the front reads too slowly: the record was dropped, and is counted there")
        return cast("Receipt", receipt)


class VersionRecords:
    """The front's `RecordSink`: puts what version processes hand up into the trail."""

    def __init__(self, host: Host, logger: AuditLogger) -> None:
        self._host = host
        self._logger = logger

    def take(self, record: Mapping[str, Any], version: str) -> Receipt | _Met:
        """Append one record; what it says of itself is bounded and escaped by the journal like everything else."""
        given = record.get("members")
        members: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"detail": dict(record)}
        members = {name: value for name, value in members.items() if name not in _TEXTS or isinstance(value, str)}
        action = str(members.get("action", "version.record"))
        members["action"] = f"app.{action}" if action.startswith(RESERVED_PREFIX) else action
        for name, usual in (("kind", "bot"), ("outcome", "success"), ("level", "info")):
            members.setdefault(name, usual)
        members["process"] = version
        actor = _actor(record.get("actor"))
        logger = self._logger
        if logger.encrypts:
            return _Met(self._host.runtime.submit(self._meet, members, actor))
        return logger.journal.append(logger.assembler.event(members, actor))

    async def _meet(self, members: dict[str, Any], actor: Actor) -> None:
        await self._logger.meet(actor)
        await self._logger.journal.append(self._logger.assembler.event(members, actor)).durable()

    def lost(self, count: int, version: str) -> None:
        """Record that records of a version process never came."""
        self._logger.system("audit.gap", outcome="failure", level="error", process=version, count=count)


class _Met:
    """The fate of a record whose actor's key had to be made first."""

    def __init__(self, done: Completion[None]) -> None:
        self._done = done

    async def durable(self) -> None:
        await self._done.wait()


def _actor(said: Any) -> Actor:
    if not isinstance(said, Mapping):
        return SYSTEM
    kind, name, auth, session, principal = (str(said.get(field) or "") for field in _NAMES)
    return Actor(kind or "anonymous", name, auth, session, principal)
