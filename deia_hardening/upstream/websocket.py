"""A WebSocket to an upstream: websockets' sans-I/O client on one side, the ASGI scope on the other.

Messages, close codes and subprotocols pass both ways; a denied handshake becomes the client's (the
upstream's own answer where the server can pass one). Each side is read only as fast as the other takes. RFC
6455.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream, TaskGroup
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from deia_hardening.types import Message, Receive, Scope, Send
from deia_hardening.upstream.base import Aborted, FailedBeforeStart, NotSent
from deia_hardening.upstream.request import BadRequest, encode_target, forwardable
from deia_hardening.upstream.streamed import dial
from deia_hardening.upstream.verdict import not_connected

if TYPE_CHECKING:
    from deia_hardening.upstream.http import HttpUpstream

_READ = 64 * 1024
_NOT_PASSED = frozenset(
    ("connection", "upgrade", "keep-alive", "transfer-encoding", "proxy-connection", "te", "date", "server")
)
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
_MOST_WAITING = 10_000  # pongs for an upstream that does not read
ABNORMAL, NO_STATUS = 1006, 1005


async def bridge(upstream: HttpUpstream, scope: Scope, receive: Receive, send: Send) -> None:
    """Carry one `websocket` scope. Raises NotSent, FailedBeforeStart, Aborted."""
    try:
        stream, _ = await dial(upstream)
    except Exception as error:
        raise not_connected(upstream.name, error, upstream.settings, consumed=False) from None
    try:
        await _Bridge(upstream, stream, scope, receive, send).run()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await anyio.aclose_forcefully(stream)


class _Bridge:
    def __init__(self, upstream: HttpUpstream, stream: ByteStream, scope: Scope, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._settings = upstream.settings.websocket
        self._stream = stream
        self._scope = scope
        self._receive = receive
        self._send = send
        self._sending = anyio.Lock()
        self._left = anyio.Event()  # the client is gone
        self._ended = anyio.Event()  # the upstream has said all it says
        self._early: list[Frame] = []
        self._outgoing: list[bytes] = []
        self._group: TaskGroup
        self._broken: BaseException | None = None

    async def run(self) -> None:
        upstream = self._upstream
        try:
            protocol = self._protocol()
            request = protocol.connect()
            del request.headers["Host"]
            for name, value in forwardable(self._scope, upstream.route):
                request.headers[name] = value
            get = {**self._scope, "method": "GET"}
            for line in upstream.signed(get, encode_target(get, upstream.route.prefix)):
                name, _, value = line.decode("ascii").partition(": ")
                request.headers[name] = value
        except BadRequest:
            await self._receive()
            await self._send({"type": "websocket.close", "code": 1008, "reason": "malformed handshake"})
            return
        protocol.send_request(request)
        answer = await self._handshake(protocol)
        message = await self._receive()
        if message["type"] != "websocket.connect":
            return
        error = protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            await self._deny(error.response)
        elif error is not None:
            raise FailedBeforeStart(upstream.name, "malformed", f"its handshake is malformed: {error}", consumed=True)
        else:
            await self._accept(protocol, answer)

    def _protocol(self) -> ClientProtocol:
        target = encode_target({**self._scope, "method": "GET"}, self._upstream.route.prefix).decode("latin-1")
        path, _, query = target.partition("?")
        uri = WebSocketURI(False, "upstream", 80, path, query, None, None)
        offered = [Subprotocol(name) for name in self._scope.get("subprotocols") or ()]
        return ClientProtocol(uri, subprotocols=offered or None, max_size=self._settings.max_message)

    async def _handshake(self, protocol: ClientProtocol) -> Response:
        """Send the request and wait for the whole answer to it. Raises when none comes."""
        upstream = self._upstream
        limit = upstream.settings.first_byte_timeout or math.inf
        fed = False
        with anyio.move_on_after(limit) as silence:
            try:
                await self._flush(protocol)
                while not protocol.handshake_exc and protocol.state is State.CONNECTING:
                    data = await self._stream.receive(_READ)
                    fed = True
                    protocol.receive_data(data)
            except anyio.EndOfStream:
                protocol.receive_eof()
            except _BROKEN as error:
                reset = isinstance(error.__cause__, ConnectionResetError | BrokenPipeError)
                if reset and not fed and upstream.local:
                    raise NotSent(upstream.name, "closed", "it closed without reading the handshake") from None
                raise FailedBeforeStart(upstream.name, "reset", "the connection broke") from None
        if silence.cancelled_caught:
            raise FailedBeforeStart(upstream.name, "first_byte_timeout", f"no handshake within {limit} s")
        events = protocol.events_received()
        if events and isinstance(events[0], Response):
            self._early = [event for event in events[1:] if isinstance(event, Frame)]
            return events[0]
        cause = "malformed" if fed else "reset"
        raise FailedBeforeStart(upstream.name, cause, f"no handshake: {protocol.handshake_exc}")

    async def _deny(self, answer: Response) -> None:
        extensions = self._scope.get("extensions") or ()
        if "websocket.http.response" not in extensions:
            await self._send({"type": "websocket.close", "code": 1000})  # before accept: the server answers 403
            return
        body = bytes(answer.body or b"")
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.raw_items()
            if name.lower() not in _NOT_PASSED and name.lower() != "content-length"
        ]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "websocket.http.response.start", "status": answer.status_code, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": body, "more_body": False})

    async def _accept(self, protocol: ClientProtocol, answer: Response) -> None:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.raw_items()
            if name.lower() not in _NOT_PASSED and not name.lower().startswith("sec-websocket-")
        ]
        await self._send({"type": "websocket.accept", "subprotocol": protocol.subprotocol, "headers": headers})
        raised: BaseException | None = None
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._client_to_upstream, protocol, group.cancel_scope)
            try:
                await self._upstream_to_client(protocol)
                with anyio.move_on_after(self._settings.close_timeout):
                    await self._flush(protocol)  # the answer to its close
            except Exception as error:
                raised = error
            group.cancel_scope.cancel()
        if raised is not None:
            raise raised
        if self._broken is not None and not self._left.is_set():
            raise self._broken

    async def _upstream_to_client(self, protocol: ClientProtocol) -> None:
        parts = bytearray()  # of a message in several frames, however small they are
        kind = Opcode.TEXT
        while (frames := await self._more(protocol)) is not None:
            for frame in frames:
                if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                    kind = frame.opcode
                elif frame.opcode is not Opcode.CONT:
                    continue  # pings were answered by the protocol
                if parts or not frame.fin:
                    parts += frame.data
                if not frame.fin:
                    continue
                data = bytes(parts or frame.data)
                parts.clear()
                if kind is Opcode.BINARY:
                    await self._send({"type": "websocket.send", "bytes": data})
                    continue
                try:
                    await self._send({"type": "websocket.send", "text": data.decode()})
                except UnicodeDecodeError:
                    protocol.fail(1007, "text that is not UTF-8")
                    self._answer(protocol)
        self._ended.set()
        if self._left.is_set():
            return
        received, sent = protocol.close_rcvd, protocol.close_sent
        close = received or sent
        if close is None:
            self._broken = Aborted(self._upstream.name, "reset", "the WebSocket broke off", consumed=True)
            return
        code = 1000 if close.code == NO_STATUS else close.code
        await self._send({"type": "websocket.close", "code": code, "reason": close.reason})

    async def _more(self, protocol: ClientProtocol) -> list[Frame] | None:
        """The next frames, perhaps none yet; None at the end."""
        frames, self._early = self._early, []
        if not frames:
            frames = [event for event in protocol.events_received() if isinstance(event, Frame)]
        if frames:
            return frames
        if protocol.state is State.CLOSED or protocol.close_expected():
            return None
        try:
            data = await self._stream.receive(_READ)
        except _BROKEN:
            protocol.receive_eof()
        else:
            protocol.receive_data(data)
        self._answer(protocol)
        return frames

    def _answer(self, protocol: ClientProtocol) -> None:
        """Have pongs and the like sent, beside: who reads nothing while it writes must not stop us from reading."""
        if self._collect(protocol):
            self._group.start_soon(self._flush, protocol)
        if len(self._outgoing) > _MOST_WAITING:
            raise Aborted(self._upstream.name, "too_large", "it asks for pongs and reads none", consumed=True)

    async def _client_to_upstream(self, protocol: ClientProtocol, scope: anyio.CancelScope) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    self._left.set()
                    await self._close(protocol, message)
                    break
                if protocol.state is not State.OPEN:
                    continue
                text = message.get("text")
                if text is not None:
                    protocol.send_text(text.encode())
                else:
                    protocol.send_binary(message.get("bytes") or b"")
                await self._flush(protocol)
        except Exception as error:
            if not self._ended.is_set():
                self._broken = error
        scope.cancel()

    async def _close(self, protocol: ClientProtocol, message: Message) -> None:
        """Pass the client's close on, and wait a little for the answer; a client that vanished just
        vanishes."""
        code: Any = message.get("code", NO_STATUS)
        if code == ABNORMAL or protocol.state is not State.OPEN:
            return
        try:
            if code == NO_STATUS:
                protocol.send_close()
            else:
                protocol.send_close(code, message.get("reason") or "")
        except ProtocolError:
            protocol.send_close(1000)
        with anyio.move_on_after(self._settings.close_timeout):
            await self._flush(protocol)
            await self._ended.wait()

    def _collect(self, protocol: ClientProtocol) -> bool:
        """Take what the protocol wants to say. Whether anything waits to be sent, and nobody is sending."""
        self._outgoing += protocol.data_to_send()
        return bool(self._outgoing) and not self._sending.locked()

    async def _flush(self, protocol: ClientProtocol) -> None:
        """Send all there is, also what is added meanwhile."""
        async with self._sending:
            self._collect(protocol)
            while self._outgoing:
                data = b"".join(self._outgoing)
                self._outgoing.clear()
                try:
                    if data:  # an empty piece is the protocol's sign for the end
                        await self._stream.send(data)
                except _BROKEN:
                    if protocol.state is State.CONNECTING:
                        raise
                self._collect(protocol)
