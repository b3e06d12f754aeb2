"""One asyncio connection to an upstream, at protocol level: no streams, no task and no timer per request.

It reads answers into ASGI messages (`ResponseReader`), stops reading when the client is slow, and knows for
each failure whether the request can have reached the other side. It belongs to the event loop that made it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from deia_hardening.upstream.response import Malformed, ResponseReader

if TYPE_CHECKING:
    from deia_hardening.types import Message
    from deia_hardening.upstream.pool import Pool

_READ = 64 * 1024
_FRESH = 0.001  # seconds
_FRESH_LOCAL = 0.1  # a Unix socket tells of its end by the first write as well
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Connection(ResponseReader, asyncio.Protocol):
    """A connection in the hands of its pool (idle) or of one call (active)."""

    __slots__ = (
        "_flow", "_limit", "_reading_paused",
        "context", "deadline", "error", "fresh", "local", "lost", "pool", "queued", "receive", "refused",
        "sending_paused", "since", "sock", "task", "transport", "uploaded", "waiter", "watch_at", "watched",
    )  # fmt: skip

    def __init__(self, pool: Pool, sock: socket.socket | None, *, local: bool) -> None:
        settings = pool.settings
        ResponseReader.__init__(self, settings.max_head, settings.max_headers, own=pool.own)
        self.pool = pool
        self.sock = sock
        self.local = local
        self.fresh = _FRESH_LOCAL if local else _FRESH
        self.transport: asyncio.Transport
        self.deadline = self.watch_at = self.since = 0.0
        self.uploaded = True
        self.watched = self.lost = self.refused = self.queued = self.sending_paused = False
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.receive: Callable[[], Awaitable[Message]] | None = None
        self.context: Context | None = None
        self.waiter: asyncio.Future[None] | None = None
        """Set by a call that waits for the next event; it then looks again at `events`, `done` and `error`."""
        self._limit = int(settings.buffer)
        self._reading_paused = False
        self._flow: asyncio.Future[None] | None = None

    # the transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.done:  # idle: nobody asked
            self.close()
            return
        try:
            self.feed(data)
        except Malformed as error:
            self.fail(error)
            return
        if not self.done and (self.uploaded or self.deadline):
            self.count()
        if self.buffered > self._limit and not self._reading_paused:
            self._pause_reading()
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if self._flow is not None and not self.sending_paused:  # an upload that waits for its 100
            self._release_flow()

    def eof_received(self) -> bool:
        return False  # connection_lost follows

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost = True
        if self.error is None and not self.done:  # else this is our own doing, and no end of an answer
            if error is not None:
                self._last_words(isinstance(error, BrokenPipeError))
            elif not self.eof():
                error = EOFError("closed before the end of its answer")
            if not self.done and self.error is None:
                self.error = error
        self.pool.lost(self)
        self._wake()

    def _last_words(self, readable: bool) -> None:
        """Read what came before the other side broke off: who refuses an upload answers, and closes under it.

        An end behind it is one only where nothing but our writing failed: a reset is told once, and then looks like it.
        """
        if self.sock is None:
            return
        try:
            while not self.done and self.buffered <= self._limit:
                data = self.sock.recv(_READ, socket.MSG_DONTWAIT)
                if not data:
                    if readable:
                        self.eof()
                    return
                self.feed(data)
        except OSError:
            pass
        except Malformed as error:
            self.error = error

    def pause_writing(self) -> None:
        self.sending_paused = True

    def resume_writing(self) -> None:
        self.sending_paused = False
        self._release_flow()

    # a call uses these

    def write_first(self, data: bytes) -> None:
        """Write the beginning of a request, straight to the socket where that can be done.

        It tells at once when the other side takes nothing: then `refused` is set and the connection has failed. A
        connection whose transport was ever given bytes to keep is written through it for good, so that nothing
        overtakes what is still in there.
        """
        sock = self.sock
        if sock is None or self.queued:
            self.transport.write(data)
            return
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.refused = True
            self.fail(error)
            return
        if sent < len(data):
            self.write(data[sent:])

    def write(self, data: bytes) -> None:
        """Write more of a request, through the transport's buffer."""
        self.queued = True
        self.transport.write(data)

    def taken(self, size: int) -> None:
        """`size` bytes of a body went on to the client; read further where that had stopped."""
        self.buffered -= size
        if self._reading_paused and self.buffered <= self._limit >> 1:
            self._reading_paused = False
            if not self.lost:
                self.transport.resume_reading()
                if self.uploaded:
                    self.count()

    def count(self) -> None:
        """From now on the other side's silence counts, but not while it is the client that is slow."""
        pool = self.pool
        limit = pool.idle_timeout if self.started else pool.first_byte_timeout
        self.deadline = pool.loop.time() + limit if limit and not self.done and not self._reading_paused else 0.0

    def _pause_reading(self) -> None:
        if not self.done:
            self._reading_paused = True
            self.transport.pause_reading()
            self.deadline = 0.0  # from here it is the client that is slow

    async def writable(self, *, or_answer: bool = False) -> None:
        """Wait while the other side does not take more; with `or_answer` until it says anything at all."""
        while not self.lost and (self.sending_paused or (or_answer and not (self.continued or self.started))):
            flow = self._flow = self.pool.loop.create_future()
            await flow

    def fail(self, error: BaseException) -> None:
        """End the call in progress with `error` and the connection with it."""
        if self.error is None:
            self.error = error
        self.reusable = False
        self.transport.abort()
        self._wake()

    def close(self) -> None:
        """Close without waiting. What was written still goes out."""
        self.reusable = False
        self.transport.close()

    def abort(self) -> None:
        self.reusable = False
        self.transport.abort()

    def alive(self, now: float) -> bool:
        """Whether an idle connection can be used: no end at its socket, and no bytes (2 µs).

        One that served a moment ago is not looked at: what closes this fast closes under any look.
        """
        if self.lost or self.transport.is_closing():
            return False
        if now - self.since <= self.fresh or self.sock is None:
            return True
        try:
            self.sock.recv(1, _PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def _wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        self._release_flow()

    def _release_flow(self) -> None:
        flow = self._flow
        if flow is not None:
            self._flow = None
            if not flow.done():
                flow.set_result(None)


def quiet(task: asyncio.Task[Any]) -> None:
    """Take a task's result, so that nobody reports it as never looked at."""
    if not task.cancelled():
        task.exception()
