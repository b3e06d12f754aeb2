"""The same exchange over anyio streams: what carries calls under trio.

Slower than the asyncio path (a task group per call) and equal in every outcome. Connections are kept per
trio run and closed with it. The verdicts are shared with the asyncio path (`verdict.py`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from deia_hardening.streams import until_left
from deia_hardening.types import Message, Receive, Scope, Send
from deia_hardening.upstream.addresses import Address
from deia_hardening.upstream.exchange import chunk
from deia_hardening.upstream.pool import share
from deia_hardening.upstream.request import CHUNKED, UNKNOWN, BadRequest, Head
from deia_hardening.upstream.response import Malformed, ResponseReader
from deia_hardening.upstream.settings import UpstreamSettings
from deia_hardening.upstream.verdict import ClientLeft, Evidence, Next, PoolFull, SilentPeer, judge, not_connected

if TYPE_CHECKING:
    from deia_hardening.upstream.http import HttpUpstream

_READ = 64 * 1024


async def dial(upstream: HttpUpstream) -> tuple[ByteStream, bool]:
    """Connect within `connect_timeout`; the stream, and whether it is a Unix socket. Raises OSError,
    TimeoutError."""
    limit = upstream.settings.connect_timeout or None
    with anyio.fail_after(limit):
        last: OSError | None = None
        found = await upstream.places()
        for number, address in enumerate(found, 1):
            try:
                with anyio.fail_after(share(upstream.settings.connect_timeout, number, len(found))):
                    return await _dial_at(upstream, address)
            except OSError as error:
                last = error
        raise last or OSError("no address to connect to")


async def _dial_at(upstream: HttpUpstream, address: Address) -> tuple[ByteStream, bool]:
    if address.family == socket.AF_UNIX:
        return await anyio.connect_unix(address.sockaddr), True
    try:
        stream: ByteStream = await anyio.connect_tcp(*address.sockaddr)
    except OSError as error:  # anyio hides the refusal behind its own
        raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
    context = upstream.tls()
    if context is not None:
        name = upstream.tls_name
        try:
            stream = await TLSStream.wrap(stream, hostname=name, ssl_context=context, standard_compatible=False)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            raise
    return stream, False


def _raw_socket(stream: ByteStream) -> Any:
    return stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django's


class Line(ResponseReader):
    """A stream to the upstream with the reader of its answers."""

    def __init__(self, stream: ByteStream, settings: UpstreamSettings, *, local: bool, own: bool) -> None:
        super().__init__(settings.max_head, settings.max_headers, own=own)
        self.stream = stream
        self.local = local
        self.since = 0.0

    def alive(self) -> bool:
        raw = _raw_socket(self.stream)
        if raw is None or isinstance(self.stream, TLSStream):
            return True
        try:
            raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        raw = _raw_socket(self.stream)
        stream: Any = self.stream
        while hasattr(stream, "transport_stream"):
            stream = stream.transport_stream
        inner = getattr(stream, "_trio_socket", None)
        (inner or raw).close()


class Lines:
    """The kept lines of one trio run."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.idle: list[Line] = []
        self.closed = False
        self.places = anyio.Semaphore(settings.max_connections)
        self._closer = self._close_with_run()

    async def register(self) -> None:
        await self._closer.asend(None)

    async def _close_with_run(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        self.closed = True
        while self.idle:
            self.idle.pop().close()

    def take(self) -> Line | None:
        now = anyio.current_time()
        while self.idle:
            line = self.idle.pop()
            keep = min(self.settings.keep_alive, line.idle_seconds * 0.8 or self.settings.keep_alive)
            if now - line.since < keep and line.alive():
                return line
            line.close()
        return None

    def put(self, line: Line) -> None:
        if not line.reusable or self.closed or len(self.idle) >= self.settings.max_idle:
            line.close()
            return
        line.since = anyio.current_time()
        self.idle.append(line)


class StreamedExchange:
    """One call. Used once."""

    def __init__(
        self, upstream: HttpUpstream, head: Head, scope: Scope, receive: Receive, send: Send, repeatable: bool
    ) -> None:
        self._upstream = upstream
        self._settings = upstream.settings
        self._head = head
        self._scope = scope
        self._receive = receive
        self._send = send
        self._repeatable = repeatable
        self._consumed = False
        self._body_taken = False
        self._uploaded = False
        self._started = False
        self._first: Message | None = None
        self._failed: BaseException | None = None

    async def run(self) -> None:
        lines = await self._upstream.lines()
        await self._enter(lines)
        try:
            while True:
                line = lines.take()
                reused = line is not None
                if line is None:
                    line = await self._connect()
                try:
                    error = await self._attempt(line)
                except BaseException:
                    line.reusable = False
                    raise
                finally:
                    line.reusable = line.reusable and line.done and self._uploaded and self._failed is None
                    lines.put(line)
                if line.done and not line.events and (error is None or isinstance(error, ClientLeft)):
                    return
                if judge(error, self._evidence(line, reused)) is Next.RETURN:
                    return
                self._failed = None
        finally:
            lines.places.release()

    async def _enter(self, lines: Lines) -> None:
        try:
            lines.places.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(self._settings.connect_timeout or None) as waiting:
                await lines.places.acquire()
                return
            if waiting.cancelled_caught:
                raise not_connected(self._upstream.name, PoolFull(), self._settings, consumed=False) from None

    async def _connect(self) -> Line:
        try:
            stream, local = await dial(self._upstream)
        except Exception as error:
            raise not_connected(self._upstream.name, error, self._settings, consumed=self._consumed) from None
        return Line(stream, self._settings, local=local, own=self._upstream.own)

    def _evidence(self, line: Line, reused: bool) -> Evidence:
        return Evidence(
            name=self._upstream.name,
            started=self._started,
            fed=line.fed,
            reused=reused,
            bodyless=self._head.length == 0,
            local=line.local,
            refused=False,
            body_taken=self._body_taken,
            consumed=self._consumed,
            repeatable=self._repeatable,
        )

    async def _attempt(self, line: Line) -> BaseException | None:
        """One try on one line; returns what broke it, or None. Raises what `send` raised, and BadRequest."""
        extensions = self._scope.get("extensions") or ()
        line.begin(
            head=self._scope["method"] == "HEAD",
            trailers="http.response.trailers" in extensions,
            early_hints="http.response.early_hint" in extensions,
        )
        line.buffered = 0
        self._uploaded = False
        self._answering = anyio.Event()
        raised: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._upload, line, group.cancel_scope)
            try:
                await self._answer(line)
            except (Malformed, SilentPeer) as error:
                self._failed = self._failed or error
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                if not self._proper_end(line, error):
                    cause = error.__cause__
                    self._failed = self._failed or (cause if isinstance(cause, OSError) else EOFError("it was closed"))
            except Exception as error:
                raised = error
            group.cancel_scope.cancel()
        if raised is None and line.events and line.done and self._failed is None:
            await self._pass_on(line)
        if raised is not None:
            raise raised
        if isinstance(self._failed, BadRequest):
            line.done = line.reusable = True
            raise self._failed
        return self._failed

    @staticmethod
    def _proper_end(line: Line, error: Exception) -> bool:
        return isinstance(error, anyio.EndOfStream) and line.eof()

    async def _answer(self, line: Line) -> None:
        settings = self._settings
        while True:
            await self._pass_on(line)
            if line.done:
                return
            limit = settings.idle_timeout if self._started else settings.first_byte_timeout
            counting = bool(limit) and (self._started or self._uploaded)
            if counting or self._started or not settings.first_byte_timeout:
                with anyio.move_on_after(limit or None) as silence:
                    data = await line.stream.receive(_READ)
                if silence.cancelled_caught:
                    cause = "idle_timeout" if self._started else "first_byte_timeout"
                    raise SilentPeer(cause, f"silent for {limit} s")
            else:  # still sending: the time for the first byte has not begun
                with anyio.move_on_after(0.1) as silence:
                    data = await line.stream.receive(_READ)
                if silence.cancelled_caught:
                    continue
            line.feed(data)
            if line.started or line.continued:
                self._answering.set()

    async def _pass_on(self, line: Line) -> None:
        while line.events:
            message = line.events.pop(0)
            if message["type"] == "http.response.start":
                self._started = True
            await self._send(message)
        line.buffered = 0

    async def _upload(self, line: Line, scope: anyio.CancelScope) -> None:
        try:
            await self._write(line)
            self._uploaded = True
            await anyio.sleep(self._settings.watch_after)
            self._consumed = self._body_taken = True
            if await until_left(self._receive):
                raise ClientLeft
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the reader learns why
        except Exception as error:
            self._failed = self._failed or error
            scope.cancel()

    async def _write(self, line: Line) -> None:
        head = self._head
        stream = line.stream
        length = head.length
        if length == 0:
            await stream.send(head.framed(0))
            return
        if head.expect and length != UNKNOWN:
            await stream.send(head.framed(length, expect=True))
            with anyio.move_on_after(self._settings.expect_timeout or None):
                await self._answering.wait()
            if line.started:
                await anyio.sleep_forever()  # answered without the body; ends with the answer
            self._body_taken = True
            data = b""
            message = await self._next()
        else:
            message = self._first or await self._next()
            self._first = message
            size, more = len(message.get("body", b"")), message.get("more_body", False)
            if not more and length in (UNKNOWN, CHUNKED):
                length = size
            elif length == UNKNOWN:
                length = CHUNKED
            elif length != CHUNKED and (size > length or (not more and size < length)):
                raise BadRequest("a body that is not as long as its Content-Length")
            data = head.framed(length)
        left = length
        while True:
            body: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if length == CHUNKED:
                data += chunk(body) if more else chunk(body) + b"0\r\n\r\n"
            else:
                left -= len(body)
                if left < 0 or (not more and left):
                    raise ClientLeft  # not as long as it said: cut, as a client that left
                data += body
            if data:
                await stream.send(data)
            if not more:
                return
            data = b""
            self._body_taken = True
            message = await self._next()

    async def _next(self) -> Message:
        self._consumed = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message
