"""Serves a witness over HTTP/1.1 (C2SP tlog-witness, add-checkpoint), for logs of others.

One asyncio server; the head of each log is durable before its cosignature leaves, checked and replaced under one
lock. Requests are bounded in size and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

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
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MOST_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def serving(self) -> bool:
        return self._server is not None and self._server.is_serving()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(_PATIENCE):
                    keep = await self._one(reader, writer)
                    await writer.drain()
                if not keep:
                    return
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        parts = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = headers.get("content-length", "")
        if len(parts) != 3 or "transfer-encoding" in headers:
            return self._reply(writer, WitnessAnswer(400, b"a request with a Content-Length is expected\n"), keep=False)
        if parts[1].rpartition("/")[2] != "add-checkpoint":
            return self._reply(writer, WitnessAnswer(404, b"there is only add-checkpoint here\n"), keep=False)
        if parts[0] != "POST":
            return self._reply(writer, WitnessAnswer(405, b"add-checkpoint is a POST\n"), keep=False)
        if not length.isascii() or not length.isdecimal() or int(length) > _MOST_BODY:
            return self._reply(writer, WitnessAnswer(413, b"the request is too large or has no length\n"), keep=False)
        body = await reader.readexactly(int(length))
        async with self._lock:
            answer = await self._blocking(self._witness.answer, body)
        return self._reply(writer, answer, keep=headers.get("connection", "").lower() != "close")

    @staticmethod
    def _reply(writer: asyncio.StreamWriter, answer: WitnessAnswer, *, keep: bool) -> bool:
        phrase = HTTPStatus(answer.status).phrase
        head = (
            f"HTTP/1.1 {answer.status} {phrase}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        writer.write(head.encode() + answer.body)
        return keep
