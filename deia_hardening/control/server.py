"""HTTP/1.1 for the socket and the control plane's own address, parsed by llhttp (httptools), on the background loop.

Every reading is bounded: bytes of head and body, time to send them, connections at once. One request at a time per
connection: what is sent before the answer to the last one is refused, and nothing lenient is parsed, so two readers
can't disagree about where a request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httptools

from deia_hardening.control.http import Peer, Request, Response, Way, gather_headers, problem_response
from deia_hardening.control.settings import ControlSettings
from deia_hardening.problem import Problem

logger = logging.getLogger("deia_hardening.control")

_MOST_HEADERS: Final = 100
_LINGER: Final = 1.0  # seconds that a refused client may take to hang up
_PHRASES: Final = {200: "OK", 304: "Not Modified"}

Handler = Callable[[Request], Awaitable[Response]]


class Connections:
    """The connections of one listening socket, so that they are counted and can be closed together."""

    def __init__(
        self, handler: Handler, settings: Callable[[], ControlSettings], way: Way, secure: bool = False
    ) -> None:
        self.handler = handler
        self.settings = settings
        self.way = way
        self.secure = secure
        self.open: set[Connection] = set()

    def __call__(self) -> Connection:
        return Connection(self)

    def close(self) -> None:
        """End all of them."""
        for connection in list(self.open):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._settings = owner.settings()
        self._transport: asyncio.Transport | None = None
        self._peer = Peer(owner.way)
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._read = 0
        self._head = 0
        self._head_done = False
        self._started = False

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = peer_of(transport, self._owner)
        self._owner.open.add(self)
        most = self._settings.max_connections
        if len(self._owner.open) > most * 2:
            transport.abort()
            return
        if len(self._owner.open) > most:
            self._refuse(Problem(503, "too many connections to the control plane", retry_after=1))
            return
        self._wait(self._settings.idle_timeout)

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._owner.open.discard(self)
        self._writable.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._task is not None:
            # Bytes beyond the request that is being answered: nobody needs this, and smugglers do.
            self._closing = True
            return
        self._read += len(data)
        if not self._started:
            self._started = True
            self._wait(self._settings.read_timeout)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Problem(400, "this speaks HTTP/1.1 only"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Problem) else Problem(400, "the request can't be read"))
        except httptools.HttpParserError:
            self._refuse(Problem(400, "the request can't be read"))
        else:
            if not self._head_done and self._read > self._settings.max_head:
                self._refuse(self._too_long())

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- the parser's side

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._settings.max_head:
            raise self._too_long()

    def _too_long(self) -> Problem:
        return Problem(431, f"the head of a request has at most {self._settings.max_head} here")

    def on_message_begin(self) -> None:
        if self._task is not None:
            self._closing = True

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._task is not None:
            return
        self._headers.append((name, value))
        self._count(len(name) + len(value) + 4)
        if len(self._headers) > _MOST_HEADERS:
            raise Problem(431, f"a request has at most {_MOST_HEADERS} headers here")

    def on_headers_complete(self) -> None:
        if self._task is not None:
            return
        self._head_done = True
        found = gather_headers(self._headers)
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise Problem(400, "this speaks HTTP/1.1 only")
        if version == "1.1" and "host" not in found:
            raise Problem(400, "the header 'host' is missing")
        length = found.get("content-length", "0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._settings.max_body:
            raise Problem(413, f"a body has at most {self._settings.max_body} here")
        if "expect" in found:
            if found["expect"].lower() != "100-continue":
                raise Problem(417, "only 'expect: 100-continue' is understood")
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._task is not None:
            return
        self._body += body
        if len(self._body) > self._settings.max_body:
            raise Problem(413, f"a body has at most {self._settings.max_body} here")

    def on_message_complete(self) -> None:
        if self._task is not None or self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        url = httptools.parse_url(self._url)
        request = Request(
            self._parser.get_method().decode("latin-1"),
            (url.path or b"").decode("latin-1"),
            (url.query or b"").decode("latin-1"),
            gather_headers(self._headers),
            bytes(self._body),
            self._peer,
        )
        keep = self._parser.should_keep_alive()
        chunked = self._parser.get_http_version() == "1.1"
        self._task = asyncio.get_running_loop().create_task(self._answer(request, keep, chunked))

    # ---- answering

    async def _answer(self, request: Request, keep: bool, chunked: bool) -> None:
        transport = self._transport
        assert transport is not None
        stream = None
        try:
            response = await self._owner.handler(request)
            stream = response.stream
            keep = keep and not self._closing and (stream is None or chunked)
            transport.write(_head(response, keep, chunked) + response.body)
            if stream is not None:
                async for piece in stream:
                    transport.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                    await self._writable.wait()
                    if transport.is_closing():
                        break
                if chunked:
                    transport.write(b"0\r\n\r\n")
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Exception:
            logger.exception("the control plane could not answer")
            keep = False
        finally:
            if stream is not None:
                with contextlib.suppress(Exception):
                    await stream.aclose()  # type: ignore[attr-defined]
            self._task = None
        if not keep or self._closing:
            transport.close()
            self._closing = True
        else:
            self._begin()
            self._wait(self._settings.idle_timeout)

    def _refuse(self, problem: Problem) -> None:
        self._closing = True
        if self._transport is not None and not self._transport.is_closing():
            response = problem_response(problem)
            self._transport.write(_head(response, keep=False, chunked=False) + response.body)
            # Closing with bytes unread would reset the connection, and the answer with it.
            if self._transport.can_write_eof():
                self._transport.write_eof()
                self._wait(_LINGER)
            else:
                self._transport.close()

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self._closing:
            self.abort()
        elif self._task is None:
            if self._started:
                self._refuse(Problem(408, "the request did not come in time"))
            elif self._transport is not None:
                self._closing = True
                self._transport.close()


def _head(response: Response, keep: bool, chunked: bool) -> bytes:
    phrase = _PHRASES.get(response.status, "Refused")
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    lines.extend(f"{name}: {value}" for name, value in response.headers)
    if response.stream is not None and chunked:
        lines.append("transfer-encoding: chunked")
    lines.append("connection: keep-alive" if keep else "connection: close")
    text = "\r\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
    return text.encode("latin-1", "replace") + b"\r\n\r\n"


def peer_of(transport: asyncio.BaseTransport, owner: Connections) -> Peer:
    """Who is on the other end."""
    if owner.way is Way.SOCKET:
        uid, pid = peer_credentials(transport.get_extra_info("socket"))
        return Peer(Way.SOCKET, uid=uid, pid=pid)
    name: Any = transport.get_extra_info("peername") or ("",)
    return Peer(owner.way, str(name[0]), secure=owner.secure)


def peer_credentials(connection: Any) -> tuple[int, int]:
    """(uid, pid) of the other end of a Unix socket; pid 0 where the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
        return uid, pid
    # macOS and BSD: struct xucred { version, uid, … } by LOCAL_PEERCRED at level 0.
    version, uid = struct.unpack_from("II", connection.getsockopt(0, 1, 76))
    if version != 0:
        raise OSError("the system does not say who the peer is")
    return uid, 0
