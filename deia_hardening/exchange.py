"""What the client saw of one request: status, times, bytes, and how it ended.

`send` and `receive` are wrapped once for everybody, and whoever must know of the start or the end is called at once, on
the serving loop. When the server refuses a message (`OSError`: the client has left), that is taken back.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self

import msgspec

from deia_hardening import streams

if TYPE_CHECKING:
    from deia_hardening.context import RequestContext
    from deia_hardening.types import Message, Receive, Send

_monotonic = time.monotonic
_DOWN = "the service is going down"
_RESTART = 1012
"""The close code of a WebSocket whose time is over (IANA's registry: the service restarts; come back later)."""


class Exchange(msgspec.Struct, eq=False, weakref=True):
    """What the client saw of one request. Times are monotonic seconds, 0.0 while it has not happened.

    Written on the serving loop only, as a message is handed to the server; read anywhere. When the server refuses
    the message (`OSError`: the client has left), `complete` is taken back and `disconnected` set.
    """

    _receive: Receive
    _send: Send
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
    returned: bool = False
    """Whether the app's call is over, its background tasks included."""
    lasting: bool = False
    """Whether it is known for a stream (`lasts`)."""

    _trailers: bool = False
    _waiting: bool = False  # the next receive() waits for the client to leave, or for a WebSocket's next message
    _socket: bool = False
    dismissed: str = ""
    """Why its time is over (`dismiss`), "" while it is not."""
    _starters: list[Callable[[Any], None]] | None = None
    _enders: list[Callable[[Any], None]] | None = None

    @property
    def context(self) -> RequestContext | None:
        """Whose it is, until the call is over: so that a callback can be the same for all requests."""
        return None

    def on_start(self, callback: Callable[[Self], None]) -> None:
        """Call `callback(exchange)` when the response starts: at once, on the serving loop. It must not raise.

        A request that is over without an answer never starts one.
        """
        if self.status:
            callback(self)
        elif self._starters is None:
            self._starters = [callback]
        else:
            self._starters.append(callback)

    def on_end(self, callback: Callable[[Self], None]) -> None:
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

    def on_both(self, started: Callable[[Self], None], ended: Callable[[Self], None]) -> None:
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
                sent = self.bytes_out
                if not sent:
                    self.first_byte = now = _monotonic()
                self.bytes_out = sent + len(body)
            if "more_body" not in message or not message["more_body"]:
                if not self._trailers:
                    self.complete = True
                    if not self.status:
                        self.end(now)
                    elif not self.ended:  # what `end` does, without a call
                        self.ended = now or _monotonic()
                        enders = self._enders
                        if enders is not None:
                            self._enders = None
                            for callback in enders:
                                callback(self)
            elif streams.ended or self.dismissed:
                raise OSError(f"this stream's time is over: {self.dismissed or _DOWN}")
        elif kind == "http.response.start":
            status = message["status"]
            if self.status or (status.__class__ is not int and not isinstance(status, int)):
                # A second start, or a wrong one: the server's to refuse.
                return self._send(message)
            self.status = status
            if "headers" in message and message["headers"].__class__ is not list:
                message = _readable(message)
            self.start = message
            self.started = _monotonic()
            if "trailers" in message:
                self._trailers = bool(message["trailers"])
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
