"""What the guarantees `response` and `intent` hold: an answer until its record is durable, a change until its intent
is.

On the serving loop, asyncio or trio. Nothing is held longer than `durable_timeout`; what then happens says
`on_failure`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from deia_audit.outcome import READS
from deia_audit.service import AuditLogger
from deia_audit.settings import AuditSettings
from deia_hardening.context import SCOPE_KEY, RequestContext
from deia_hardening.journal import JournalError, Receipt
from deia_hardening.plugin import ASGIApp, Message, Problem, Receive, Scope, Send

if TYPE_CHECKING:
    from deia_audit.middleware import Call

logger = logging.getLogger("deia_audit")

INTENT_NOTE = "audit.intent"
_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


async def durable(receipt: Receipt, timeout: float) -> bool:
    """Wait until a record is on disk; False when that failed or took too long."""
    with anyio.move_on_after(timeout):
        try:
            await receipt.durable()
        except JournalError:
            return False
        return True
    return False


def changing(scope: Scope, context: RequestContext) -> bool:
    """Whether a call may change something: all but reads whose route has no effects."""
    return scope.get("method") not in READS or bool(context.revision.effects.match(scope, False))


def unavailable() -> Problem:
    """The refusal of a call that could not be recorded; nothing was done."""
    return Problem(
        503,
        "This call can't be recorded at the moment, and the service is set to refuse what it can't record. Nothing was "
        "done; try again later.",
        retry_after=5,
        extensions={"code": "audit-unavailable"},
    )


class HeldSend:
    """A `send` that lets the answer's start through once its record is durable.

    Under `intent` that is the answer of a call whose handler was reached: a refusal before did nothing.
    """

    def __init__(self, call: Call, send: Send, settings: AuditSettings) -> None:
        self._call = call
        self._send = send
        self._timeout = float(settings.durable_timeout)
        self._refuse = settings.on_failure == "refuse"
        self._all = settings.guarantee == "response"
        self._lost = False

    async def __call__(self, message: Message) -> None:
        if self._lost:
            return  # the client has been told that the outcome is unknown
        kind = message["type"]
        if kind in _STARTS and not self._call.recorded and (self._all or INTENT_NOTE in self._call.context.notes):
            status = message.get("status") or 101
            receipt = self._call.record_start(status)
            if receipt is not None and not await durable(receipt, self._timeout):
                logger.error("the record of a %s answer is not known to be durable", status)
                if self._refuse:
                    await self._tell_unknown(kind)
                    return
        await self._send(message)

    async def _tell_unknown(self, kind: str) -> None:
        """The handler has run: no 503, which would be tried again, but that nobody can tell."""
        self._lost = True
        if kind == "websocket.accept":
            await self._send({"type": "websocket.close", "code": 1011})
            return
        problem = Problem(
            500,
            "The call was carried out, but its record could not be made durable: whether it is on record is unknown.",
            extensions={"code": "outcome-unknown"},
        )
        body = problem.body()
        prefix = "websocket." if kind.startswith("websocket") else ""
        headers = problem.raw_headers(len(body))
        await self._send({"type": f"{prefix}http.response.start", "status": 500, "headers": headers})
        await self._send({"type": f"{prefix}http.response.body", "body": body})


class IntentMiddleware:
    """Stands behind admission: makes the intent of a changing call durable before the handler runs."""

    def __init__(self, app: ASGIApp, audit: AuditLogger, settings: AuditSettings) -> None:
        self._app = app
        self._audit = audit
        self._timeout = float(settings.durable_timeout)
        self._refuse = settings.on_failure == "refuse"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[SCOPE_KEY]
        if not changing(scope, context):
            await self._app(scope, receive, send)
            return
        audit = self._audit
        receipt = audit.http(context, "intent")
        if not await durable(receipt, self._timeout):
            logger.error("the intent of %s %s is not known to be durable", scope.get("method"), scope["path"])
            if self._refuse:
                await unavailable().send(send, websocket=scope["type"] == "websocket")
                return
        context.notes[INTENT_NOTE] = "1"
        await self._app(scope, receive, send)
