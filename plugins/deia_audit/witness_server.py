"""Serves a witness over HTTP/1.1 (C2SP tlog-witness, add-checkpoint), for logs of others.

One asyncio server; the head of each log is durable before its cosignature leaves, checked and replaced under one
lock. Requests are parsed by llhttp (httptools), bounded in size and time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

import httptools
import msgspec

from deia_audit.checkpoint import TreeHead
from deia_audit.files import make_folders, replace_file
from deia_audit.keys import KeyFileError, KeyFolder
from deia_audit.notes import COSIGNATURE_V1, NoteError, Signer, VerifierKey
from deia_audit.witness import AddCheckpoint, WitnessAnswer, decide

KEY = "witness.key"
_MOST_BODY = 256 * 1024
_MOST_HEAD = 16 * 1024
_PATIENCE = 30.0
_PIECE = 64 * 1024
_LINGER = 1.0  # seconds that a refused client may take to hang up


class Witness:
    """One witness: its key, the logs that it knows, their last heads. `answer` may block on the disk."""

    def __init__(self, folder: Path, name: str, logs: Sequence[VerifierKey], now: Callable[[], float]) -> None:
        make_folders(folder, 0o700)
        keys = KeyFolder(folder)
        try:
            key = keys.load(KEY)
        except KeyFileError:
            if (folder / KEY).exists():
                raise
            key = keys.generate(KEY)
        self.signer = Signer(name, key, COSIGNATURE_V1)
        self.logs: Mapping[str, list[VerifierKey]] = {
            log.name: [other for other in logs if other.name == log.name] for log in logs
        }
        self._heads = folder / "heads.json"
        self._now = now

    def _last(self) -> dict[str, TreeHead]:
        try:
            told = msgspec.json.decode(self._heads.read_bytes(), type=dict[str, tuple[int, str]])
        except FileNotFoundError:
            return {}
        return {origin: TreeHead(origin, size, bytes.fromhex(root)) for origin, (size, root) in told.items()}

    def answer(self, body: bytes) -> WitnessAnswer:
        """Answer one add-checkpoint request; the new head is durable when this returns. One call at a time."""
        try:
            request = AddCheckpoint.parse(body)
        except NoteError as error:
            return WitnessAnswer(400, f"{error}\n".encode())
        heads = self._last()
        last = heads.get(request.checkpoint.head.origin)
        answer = decide(request, last, self.logs, self.signer, int(self._now()))
        if answer.keep is not None and answer.keep != last:
            heads[answer.keep.origin] = answer.keep
            told = {origin: (head.size, head.root.hex()) for origin, head in heads.items()}
            replace_file(self._heads, msgspec.json.encode(told))
        return answer


class WitnessServer:
    """The HTTP side. `start` binds, `close` ends; both on the loop that serves."""

    def __init__(self, witness: Witness, blocking: Callable[..., Awaitable[WitnessAnswer]]) -> None:
        self._witness = witness
        self._blocking = blocking
        self._lock = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def serving(self) -> bool:
        return self._server is not None and self._server.is_serving()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = _Sent(writer)
        try:
            while True:
                async with asyncio.timeout(_PATIENCE):
                    keep = await self._one(sent, reader, writer)
                    await writer.drain()
                if not keep:
                    return
        except (TimeoutError, ConnectionError):
            return
        finally:
            writer.close()

    async def _one(self, sent: _Sent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while not sent.requests:
            if sent.refusal is not None:
                self._reply(writer, sent.refusal, keep=False)
                writer.write_eof()
                async with asyncio.timeout(_LINGER):  # closing with bytes unread would take the answer back
                    while await reader.read(_PIECE):
                        pass
                return False
            if not (data := await reader.read(_PIECE)):
                return False
            sent.feed(data)
        method, path, body, keep = sent.requests.popleft()
        if path.rpartition("/")[2] != "add-checkpoint":
            return self._reply(writer, WitnessAnswer(404, b"there is only add-checkpoint here\n"), keep=keep)
        if method != "POST":
            return self._reply(writer, WitnessAnswer(405, b"add-checkpoint is a POST\n"), keep=keep)
        async with self._lock:
            answer = await self._blocking(self._witness.answer, body)
        return self._reply(writer, answer, keep=keep)

    @staticmethod
    def _reply(writer: asyncio.StreamWriter, answer: WitnessAnswer, *, keep: bool) -> bool:
        phrase = HTTPStatus(answer.status).phrase
        head = (
            f"HTTP/1.1 {answer.status} {phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        writer.write(head.encode() + answer.body)
        return keep


class _Sent:
    """What a client sends on one connection, taken apart by llhttp: the requests that are whole, or why not."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.requests: deque[tuple[str, str, bytes, bool]] = deque()
        """Method, path, body, and whether the connection stays."""
        self.refusal: WitnessAnswer | None = None
        self._writer = writer
        self._parser = httptools.HttpRequestParser(self)
        self._read = 0
        self.on_message_begin()

    def feed(self, data: bytes) -> None:
        self._read += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self.refusal = WitnessAnswer(413, b"the request is too large\n")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.refusal = WitnessAnswer(400, b"this is no request of HTTP/1.1\n")
        if not self._begun and self._read > _MOST_HEAD and self.refusal is None:
            self.refusal = WitnessAnswer(431, b"the head of the request is too large\n")

    # httptools calls these

    def on_message_begin(self) -> None:
        self._url, self._body, self._begun = b"", bytearray(), False
        self._expects, self._length = False, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"content-length":
            self._length = int(value) if len(value) < 10 else _MOST_BODY + 1

    def on_headers_complete(self) -> None:
        self._begun = True
        if self._length > _MOST_BODY:
            raise ValueError("too large")
        if self._expects:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _MOST_BODY:
            raise ValueError("too large")

    def on_message_complete(self) -> None:
        path = self._url.decode("latin-1").partition("?")[0]
        keep = self._parser.should_keep_alive()
        self.requests.append((self._parser.get_method().decode("latin-1"), path, bytes(self._body), keep))
        self._begun, self._read = False, 0
