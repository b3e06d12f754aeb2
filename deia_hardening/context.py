"""What one request is: who asks, under which revision, until when, and what the client has seen of the answer.

A `RequestContext` is made once per request by the outermost entry, kept in one context variable and in the ASGI
scope, and shared by all plugins: `send` and `receive` are wrapped once for everybody. Reading it never blocks.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from deia_hardening import streams
from deia_hardening.actor import ANONYMOUS, SYSTEM, Actor
from deia_hardening.ids import uuid7
from deia_hardening.mode import Mode
from deia_hardening.texts import header_text

if TYPE_CHECKING:
    from deia_hardening.revision import Revision
    from deia_hardening.types import Message, Receive, Scope, Send

SCOPE_KEY = "deia_hardening"
"""The key under which the ASGI scope shows the innermost `RequestContext`."""

_monotonic = time.monotonic
_DOWN = "the service is going down"
_RESTART = 1012
"""The close code of a WebSocket whose time is over (IANA's registry: the service restarts; come back later)."""


class Exchange:
    """What the client saw of one request. Times are monotonic seconds, 0.0 while it has not happened.

    Written on the serving loop only, as a message is handed to the server; read anywhere. When the server refuses
    the message (`OSError`: the client has left), `complete` is taken back and `disconnected` set.
    """

    status: int = 0
    """Status of the response; 101 for an accepted WebSocket; 0 before."""
    started: float = 0.0
    """When the response (or the accepted WebSocket) started."""
    first_byte: float = 0.0
    """When the first body bytes (or the first WebSocket message) went out."""
    ended: float = 0.0
    """When the last body message went out, or the client left, or the call ended without one."""
    complete: bool = False
    """Whether the response was sent to its end (a WebSocket: closed by either side)."""
    bytes_out: int = 0
    bytes_in: int = 0
    disconnected: bool = False
    close_code: int = 0
    """The close code of a WebSocket, whoever closed it."""
    start: Message | None = None
    """The response's start message as the app sent it (headers); read it, never change it."""
    context: RequestContext | None = None
    """Whose it is, until the call is over: so that a callback can be the same for all requests."""
    lasting: bool = False
    """Whether it is known for a stream (`lasts`)."""

    _trailers: bool = False
    _waiting: bool = False  # the next receive() waits for the client to leave, or for a WebSocket's next message
    _socket: bool = False
    dismissed: str = ""
    """Why its time is over (`dismiss`), "" while it is not."""
    _starters: list[Callable[[Exchange], None]] | None = None
    _enders: list[Callable[[Exchange], None]] | None = None

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    def on_start(self, callback: Callable[[Exchange], None]) -> None:
        """Call `callback(exchange)` when the response starts: at once, on the serving loop. It must not raise.

        A request that is over without an answer never starts one.
        """
        if self.status:
            callback(self)
        elif self._starters is None:
            self._starters = [callback]
        else:
            self._starters.append(callback)

    def on_end(self, callback: Callable[[Exchange], None]) -> None:
        """Call `callback(exchange)` once when the request is over, before background tasks run.

        Over means: last body message sent, or the client left a WebSocket, or the call ended without either
        (an exception, a cancellation). Called on the serving loop; it must not raise and not block.
        """
        if self.ended:
            callback(self)
        elif self._enders is None:
            self._enders = [callback]
        else:
            self._enders.append(callback)

    def on_both(self, started: Callable[[Exchange], None], ended: Callable[[Exchange], None]) -> None:
        """`on_start(started)` and `on_end(ended)`, at the price of one."""
        if self.status or self.ended or self._starters is not None:
            self.on_start(started)
            self.on_end(ended)
            return
        self._starters = [started]
        enders = self._enders
        if enders is None:
            self._enders = [ended]
        else:
            enders.append(ended)

    def send(self, message: Message) -> Awaitable[None]:
        # A plain function that returns the server's own awaitable: one coroutine less per message (0.15 µs).
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body")
            now = 0.0
            if body:
                if not self.bytes_out:
                    self.first_byte = now = _monotonic()
                self.bytes_out += len(body)
            if not message.get("more_body"):
                if not self._trailers:
                    self.complete = True
                    self.end(now)
            elif streams.ended or self.dismissed:
                raise OSError(f"this stream's time is over: {self.dismissed or _DOWN}")
        elif kind == "http.response.start":
            status = message["status"]
            if self.status or not isinstance(status, int):  # a second start, or a wrong one: the server's to refuse
                return self._send(message)
            self.status = status
            if message.get("headers").__class__ is not list:
                message = _readable(message)
            self.start = message
            self.started = _monotonic()
            if message.get("trailers"):
                self._trailers = True
            starters = self._starters
            if starters is not None:
                self._starters = None  # as with `_enders`, no cycle is left behind
                for callback in starters:
                    callback(self)
        else:
            message = self._sent_other(kind, message)
        return self._send(message)

    def _sent_other(self, kind: str, message: Message) -> Message:
        if kind == "websocket.send":
            if streams.ended or self.dismissed:
                raise OSError(f"this WebSocket's time is over: {self.dismissed or _DOWN}")
            if not self.first_byte:
                self.first_byte = _monotonic()
            data = message.get("bytes") or message.get("text") or b""
            self.bytes_out += len(data)
        elif kind == "websocket.accept":
            if self.dismissed:
                raise OSError(f"this WebSocket's time is over: {self.dismissed}")
            return self._begin(101, message)
        elif kind == "websocket.close":
            self._begin(403, message)  # the server answers 403 to a handshake that is closed
            self.close_code = message.get("code") or 1000
            self.complete = True
            self.end()
        elif kind == "websocket.http.response.start":
            return self._begin(message["status"], message)
        elif kind in ("http.response.trailers", "websocket.http.response.body", "http.response.zerocopysend"):
            self.bytes_out += len(message.get("body", b""))
            if not (message.get("more_trailers") or message.get("more_body")):
                self.complete = True
                self.end()
        elif kind == "http.response.pathsend":
            self.first_byte = self.first_byte or _monotonic()
            if not self._trailers:
                self.complete = True
                self.end()
        return message

    def _begin(self, status: Any, message: Message) -> Message:
        if self.status or not isinstance(status, int):
            return message
        self.status = status
        self.start = message = _readable(message)
        self.started = _monotonic()
        starters, self._starters = self._starters, None
        for callback in starters or ():
            callback(self)
        return message

    async def receive(self) -> Message:
        if self._waiting and streams.armed:
            message = await streams.receive_or_end(self._receive, self._end_stream, self)
        else:
            message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            self.bytes_in += len(message.get("body") or b"")
            self._waiting = self.lasting or not message.get("more_body")
        elif kind == "websocket.connect":
            self._socket = self._waiting = True
        elif kind == "http.disconnect":
            self.disconnected = True
        elif kind == "websocket.receive":
            self.bytes_in += len(message.get("bytes") or message.get("text") or b"")
        elif kind == "websocket.disconnect":
            self.disconnected = True
            self.close_code = message.get("code") or 1005
            self.complete = self.status == 101
            self.end()
        return message

    def lasts(self) -> None:
        """It is a stream. Known before it starts, `dismiss` reaches it also while its body is still coming."""
        self.lasting = self._waiting = True

    def dismiss(self, reason: str) -> None:
        """Let the app see its client leave, as at the end of the process; what is no stream may still end.

        More of a stream raises OSError with `reason`, a WebSocket is closed with 1012. On the serving loop. Somebody
        must have called `streams.arm` before the app's `receive` was called, else that sees it one message late.
        """
        self.dismissed, self._waiting = reason, True
        streams.end(self)

    async def _end_stream(self) -> Message:
        """Its time is over: the client of a WebSocket is told why, the app sees its client leave."""
        if not self._socket:
            return {"type": "http.disconnect"}
        reason = self.dismissed or "service restart"
        if not self.complete:
            try:
                await self._send({"type": "websocket.close", "code": _RESTART, "reason": reason})
            except (RuntimeError, OSError):
                pass  # closed meanwhile
        return {"type": "websocket.disconnect", "code": _RESTART, "reason": reason}

    def refused(self) -> None:
        """The server raised `OSError` on a message: the client had left."""
        self.disconnected = True
        self.complete = False

    def end(self, now: float = 0.0) -> None:
        """Mark the request as over, now. Called by the core; calling it again changes nothing."""
        if not self.ended:
            self.ended = now or _monotonic()
            self._starters = None
            enders = self._enders
            if enders is not None:
                self._enders = None
                for callback in enders:
                    callback(self)


# Bridges to synchronous code (asgiref's AsyncToSync) ask whether `send` is a coroutine function, and warn otherwise.
if hasattr(inspect, "markcoroutinefunction"):
    inspect.markcoroutinefunction(Exchange.send)
else:
    Exchange.send._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def _readable(message: Message) -> Message:
    """The start message with headers that can be read more than once: the specification allows any iterable."""
    headers = message.get("headers")
    if headers is None or isinstance(headers, (list, tuple)):
        return message
    return {**message, "headers": list(headers)}


class Named(Protocol):
    """Who can tell the id of a request that it has given."""

    @property
    def id(self) -> str: ...


class RequestContext:
    """One request. Plugins write `mode`, `version`, `deadline` and `actor`; everybody reads.

    Attributes:
        scope: the ASGI scope as handed inward; routing results appear on it.
        headers: the request's headers as they came in, whatever is done to the scope inside.
        revision: the settings revision that the request entered under, to its end.
        exchange: what the client saw.
        parent: the context of the hardened app that this one is mounted in, if any.
        received: monotonic seconds at entry.
        deadline: monotonic seconds until which an answer is of use, or None.
        mode: the mode it was admitted in.
        version: the name of the version that answers ("" without migration).
        bot: the id of the bot that answered ("" without a pool).
        trusted: whether the connection's peer is a trusted proxy, whose headers are believed.
        claims: what an untrusted peer said of itself (bounded), never to be believed.
        notes: what plugins leave for each other and for the record; keys are `plugin.name`.
    """

    mode: Mode = Mode.FULL
    version: str = ""
    bot: str = ""
    deadline: float | None = None
    actor: Actor = ANONYMOUS
    parent: RequestContext | None = None
    error: BaseException | None = None
    trusted: bool = False

    _id: str | Named | None = None
    _reason: str | None = None
    _route: str | None = None
    _features: dict[Any, Any] | None = None
    _notes: dict[str, Any] | None = None
    _claims: dict[str, str] | None = None
    _returners: list[Callable[[], None]] | None = None

    def __init__(self, scope: Scope, revision: Revision, exchange: Exchange) -> None:
        self.scope = scope
        self.headers = scope.get("headers") or ()
        self.revision = revision
        self.exchange = exchange
        self.received = _monotonic()

    @property
    def id(self) -> str:
        """The request's id: from a trusted peer's header, else a UUIDv7; computed on first use."""
        value = self._id
        if not isinstance(value, str):
            if value is None:
                parent = self.parent
                value = uuid7() if parent is None else parent.id
            else:
                value = value.id
            self._id = value
        return value

    @property
    def route(self) -> str:
        """The full mounted route template (`/api/bots/{bot_id}`); "" while or where nothing matched."""
        value = self._route
        if value is None:
            value = self.revision.template(self.scope)
            if self.exchange.started:  # routing is over: what it found no longer changes
                self._route = value
        return value

    @property
    def reason(self) -> str:
        """Why the call is made: what was set here, else its header `Deia-Reason`, bounded; "" where neither says."""
        value = self._reason
        if value is None:
            value = ""
            for name, said in self.headers:
                if len(name) == 11 and name == b"deia-reason":  # the length is cheaper to compare
                    value = header_text(said, 1024)
                    break
            self._reason = value
        return value

    @reason.setter
    def reason(self, value: str) -> None:
        self._reason = value

    def __deepcopy__(self, memo: Any) -> RequestContext:
        """Itself: an app may copy its scope, but there is one request."""
        return self

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when the app's call is over, its background tasks included; `error` says how it ended.

        So a layer sees the end without a coroutine of its own around the app. It must not raise and not block.
        """
        if self._returners is None:
            self._returners = [callback]
        else:
            self._returners.append(callback)

    def inherit(self, parent: RequestContext) -> None:
        """Take over what the outer hardened app knows of the same request."""
        self.parent = parent
        self.actor = parent.actor
        self.deadline = parent.deadline
        self.mode = parent.mode
        self._reason = parent._reason
        self.trusted = parent.trusted

    @property
    def notes(self) -> dict[str, Any]:
        notes = self._notes
        if notes is None:
            notes = self._notes = {}
        return notes

    @property
    def claims(self) -> dict[str, str]:
        """What the peer says of itself, unverified and bounded; read from the headers on first use."""
        found = self._claims
        if found is None:
            found = self._claims = self.revision.claims(self.scope)
        return found

    @property
    def features(self) -> dict[Any, Any]:
        """The flags that this request has read so far; each stays as first read."""
        features = self._features
        if features is None:
            features = self._features = {}
        return features

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), or None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - _monotonic())

    def __repr__(self) -> str:
        method = self.scope.get("method", self.scope["type"])
        return f"<RequestContext {self.id} {method} revision={self.revision.number} mode={self.mode.value}>"


context_variable: ContextVar[RequestContext | None] = ContextVar("deia_hardening", default=None)
"""The innermost request of this task or thread. Use `current(RequestContext)` outside of the core."""

__all__ = ["ANONYMOUS", "SCOPE_KEY", "SYSTEM", "Actor", "Exchange", "Mode", "RequestContext", "context_variable"]
