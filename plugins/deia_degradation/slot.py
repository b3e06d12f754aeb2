"""One request's place: when it is given back, when it becomes a stream's, and how an open stream is told to end.

It sees what the app sends. In MAINTENANCE streams get a drain deadline; then the app sees its client
leave (`http.disconnect`, a WebSocket is closed with 1012), exactly as if it had.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio

from deia_degradation.admission.gate import Gate
from deia_degradation.fallback.watch import sender, spawn
from deia_hardening.plugin import Exchange, Message, Mode, Receive, RequestContext, Send

if TYPE_CHECKING:
    from deia_degradation.middleware import Admission, Rule

_STREAMS = (
    b"text/event-stream", b"application/x-ndjson", b"application/ndjson", b"application/jsonl",
    b"application/stream+json",
)  # fmt: skip
_USUAL = frozenset({b"application/json", b"text/html; charset=utf-8", b"text/plain; charset=utf-8"})
"""The most frequent answers, which are known at a look not to be streams."""
_HELD, _STREAMING, _GIVEN_BACK = 0, 1, 2
SWITCHING = 101
SERVICE_RESTART = 1012
"""The close code of a WebSocket that is ended (IANA's registry: the service restarts; come back later)."""


class Slot:
    """The place of one request. `receive` and `send` are what the app gets; they cost a call each."""

    # What most requests never need costs them nothing: it is set when it happens.
    ended = False
    _state = _HELD
    _asked = False
    _pending: anyio.CancelScope | None = None
    _schedule: Callable[..., Any]

    def __init__(
        self, layer: Admission, gate: Gate, context: RequestContext, rule: Rule, receive: Receive, send: Send,
        started: float,
    ) -> None:  # fmt: skip
        self._layer = layer
        self._gate = gate
        self.context = context
        self._rule = rule
        self._receive = receive
        self._send = send
        self._started = started

    # -- whose it is ---------------------------------------------------------------------------------------

    def streams(self) -> None:
        """From now on it is a stream's slot, which was taken from the gate."""
        self._state = _STREAMING
        self._schedule = sender()
        self._layer.manager.open_streams.add(self)

    def over(self, exchange: Exchange) -> None:
        """The exchange is over: the place is free."""
        state = self._state
        self._state = _GIVEN_BACK
        if state == _HELD:
            now = exchange.ended
            worked = exchange.complete and exchange.status < 500 and not exchange.disconnected
            self._gate.leave(now, now - self._started if worked else None, self._layer.deadline)
        elif state == _STREAMING:
            self._layer.manager.open_streams.discard(self)
            self._gate.leave_stream()

    # -- what the app calls --------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if not self._asked:  # the body, or the handshake
            self._asked = True
            return await self._receive()
        if not self.ended:
            scope = anyio.CancelScope()
            with scope:
                self._pending = scope
                try:
                    return await self._receive()
                finally:
                    self._pending = None
        if self.context.scope["type"] == "websocket":
            return {"type": "websocket.disconnect", "code": SERVICE_RESTART, "reason": "maintenance"}
        return {"type": "http.disconnect"}

    def send(self, message: Message) -> Awaitable[None]:
        if self._state == _HELD and message["type"] == "http.response.start":
            sent = self._send(message)  # the exchange is told before anything is awaited
            self._begun()
            return sent
        if self.ended and (message["type"] != "http.response.body" or message.get("more_body")):
            raise OSError("the service is under maintenance: this stream's time is over")
        return self._send(message)

    def _begun(self) -> None:
        """The answer starts: if it is a stream, the slot is for somebody else."""
        exchange = self.context.exchange
        start = exchange.start
        if exchange.status != SWITCHING:
            try:
                for name, value in start.get("headers", ()) if start is not None else ():
                    if len(name) == 12 and name.lower() == b"content-type":
                        if value in _USUAL or not value.lower().startswith(_STREAMS):
                            return
                        break
                else:
                    return
            except (AttributeError, TypeError, ValueError):  # no pairs of bytes: the server's to refuse or to take
                return
        self._gate.to_stream(exchange.started, exchange.started - self._started, self._layer.deadline)
        self._layer.manager.stream_routes.note(self.context)
        self.streams()

    # -- its end -------------------------------------------------------------------------------------------

    def end_unless_served(self, mode: Mode) -> bool:
        """Tell an open stream to end, unless `mode` serves its route or actor; whether it was told. Any thread."""
        if self._state != _STREAMING or self.ended:
            return False
        if self._layer.modes.refusal(self.context.scope, self.context, mode, self._rule.modes) is None:
            return False
        try:
            self._schedule(self._end)
        except RuntimeError:  # its loop is gone (trio's RunFinishedError is one too)
            return False
        return True

    def _end(self) -> None:
        """On the serving loop."""
        if self._state != _STREAMING or self.ended:
            return
        self.ended = True
        if self.context.exchange.status == SWITCHING:
            spawn(self._close)
        elif self._pending is not None:
            self._pending.cancel()

    async def _close(self) -> None:
        try:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "maintenance"})
        except (RuntimeError, OSError):
            pass  # closed meanwhile
        if self._pending is not None:
            self._pending.cancel()


# Bridges to synchronous code (asgiref's AsyncToSync) ask whether `send` is a coroutine function, and warn otherwise.
if hasattr(inspect, "markcoroutinefunction"):
    inspect.markcoroutinefunction(Slot.send)
else:
    Slot.send._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
