"""One request's place: when it is given back, when it becomes a stream's, and how an open stream is told to end.

Told by the exchange, so nothing of ours stands around the app's `send` and `receive`. In MAINTENANCE streams get a
drain deadline; then the app sees its client leave (`http.disconnect`, a WebSocket is closed with 1012), exactly as if
it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deia_degradation.admission.gate import Gate
from deia_degradation.fallback.watch import sender, spawn
from deia_hardening.plugin import Exchange, Mode, RequestContext, Send

if TYPE_CHECKING:
    from deia_degradation.middleware import Admission, Rule

_STREAMS = (
    b"text/event-stream", b"application/x-ndjson", b"application/ndjson", b"application/jsonl",
    b"application/stream+json",
)  # fmt: skip
SWITCHING = 101
SERVICE_RESTART = 1012
"""The close code of a WebSocket that is ended (IANA's registry: the service restarts; come back later)."""
_REASON = "the service is under maintenance"


class Slot:
    """The place of requests that came in by a gate under a rule: one object for all those that came in at once.

    Who waited has one of its own, since its work began when it was let in (`started`), not when it came.
    """

    begun: Callable[[RequestContext], None]
    over: Callable[[RequestContext], None]
    """What the exchange of a request calls; bound once, in a slot that is kept."""

    def __init__(self, layer: Admission, gate: Gate, rule: Rule, started: float | None = None) -> None:
        self.rule = rule
        self._layer = layer
        self._gate = gate
        self._started = started
        self._harmless: Any = None
        """The last content type that was no stream's, as it stood among the headers: a look instead of a search."""

    @classmethod
    def kept(cls, layer: Admission, gate: Gate, rule: Rule) -> Slot:
        """One that is used for many requests."""
        slot = cls(layer, gate, rule)
        slot.begun, slot.over = slot._begun, slot._over
        return slot

    def hold(self, context: RequestContext) -> None:
        """The slot was taken for this request, whose end gives it back."""
        context.on_both(self._begun, self._over)

    def _begun(self, context: RequestContext) -> None:
        """The answer starts: if it is a stream, the slot is for somebody else."""
        start = context.start
        if context.status != SWITCHING:
            try:
                headers = () if start is None else start.get("headers", ())
                if self._harmless in headers:
                    return
                for name, value in headers:
                    if len(name) == 12 and name.lower() == b"content-type":
                        if not value.lower().startswith(_STREAMS):
                            self._harmless = (name, value)
                            return
                        break
                else:
                    return
            except (AttributeError, TypeError, ValueError):  # no pairs of bytes: the server's to refuse or to take
                return
        if context.returned:
            return
        layer = self._layer
        began = context.received if self._started is None else self._started
        context.lasts()
        self._gate.to_stream(context.started, context.started - began, layer.deadline)
        layer.manager.stream_routes.note(context)
        context.on_end(OpenStream(layer, self._gate, context, self.rule).over)

    def _over(self, context: RequestContext) -> None:
        """The request is over: the place is free."""
        if context.lasting and context in self._layer.manager.open_streams:  # it was given back as that began
            return
        now = context.ended
        seconds = None
        if context.complete and context.status < 500 and not context.disconnected:
            seconds = now - (self._started or context.received)
        self._gate.leave(now, seconds, self._layer.deadline)


class OpenStream:
    """An open stream, whose slot was taken from the gate. `send`: of one that is known at the door."""

    def __init__(
        self, layer: Admission, gate: Gate, context: RequestContext, rule: Rule, send: Send | None = None
    ) -> None:
        self._layer = layer
        self._gate = gate
        self._context = context
        self._rule = rule
        self._send = send
        self._schedule = sender()
        self._told = False
        layer.manager.open_streams[context] = self

    def over(self, exchange: Exchange) -> None:
        """The exchange is over: the place is free."""
        self._layer.manager.open_streams.pop(exchange, None)
        self._gate.leave_stream()

    def end_unless_served(self, mode: Mode) -> bool:
        """Tell it to end, unless `mode` serves its route or actor; whether it was told. Any thread."""
        if self._told or self._context.ended:
            return False
        if self._layer.modes.refusal(self._context.scope, self._context, mode, self._rule.modes) is None:
            return False
        try:
            self._schedule(self._end)
        except RuntimeError:  # its loop is gone (trio's RunFinishedError is one too)
            return False
        return True

    def _end(self) -> None:
        """On the serving loop."""
        context = self._context
        if self._told or context.ended:
            return
        self._told = True
        if context.scope["type"] == "websocket" and self._send is not None:
            spawn(self._close)
        else:
            context.dismiss(_REASON)

    async def _close(self) -> None:
        assert self._send is not None
        try:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "maintenance"})
        except (RuntimeError, OSError):
            pass  # closed meanwhile
        self._context.dismiss(_REASON)
