"""A witness answers any log's client: whole, in pieces, chunked, several on one connection, and never with silence."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_audit.checkpoint import Checkpoint, TreeHead, sign_checkpoint
from deia_audit.layout import Layout
from deia_audit.notes import Signer, VerifierKey
from deia_audit.tree import EMPTY_ROOT
from deia_audit.witness import AddCheckpoint
from deia_audit.witness_client import WitnessClient
from deia_audit.witness_server import Witness, WitnessServer
from deia_hardening.runtime import runtime
from deia_hardening.testing import running

LOG = Signer("log.example/a", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
BODY = b"old 0\n\n" + str(sign_checkpoint(TreeHead(LOG.name, 0, EMPTY_ROOT), [LOG])).encode()
LINE = b"POST /w1/add-checkpoint HTTP/1.1\r\nHost: witness.example\r\n"
PLAIN = LINE + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PIECES = b"".join(b"%x\r\n%b\r\n" % (len(BODY[at : at + 50]), BODY[at : at + 50]) for at in range(0, len(BODY), 50))
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n" + PIECES + b"0\r\n\r\n"
HUGE = BODY.replace(b"old 0", b"old " + b"9" * 5000)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    witness = Witness(tmp_path, "witness.example/w1", [LOG.verifier], lambda: 1_700_000_000.0)

    async def start() -> WitnessServer:
        server = WitnessServer(witness, runtime().blocking)
        await server.start("127.0.0.1", 0)
        return server

    server = runtime().submit(start).result()
    yield server.port
    runtime().submit(server.close).result()


def drip(listener: socket.socket, answer: bytes) -> None:
    """Take one request and answer it a byte at a time, each before a client may lose its patience with silence."""
    client, _ = listener.accept()
    with client, contextlib.suppress(OSError):
        client.recv(65536)
        for at in range(len(answer)):
            client.sendall(answer[at : at + 1])
            time.sleep(0.02)


def ask(port: int, *pieces: bytes) -> bytes:
    """Send pieces, each in a segment of its own, then no more; return all that comes until the other end closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ((PLAIN,), [200]),
        ((PLAIN[:20], PLAIN[20:100], PLAIN[100:]), [200]),
        ((CHUNKED,), [200]),
        ((PLAIN + CHUNKED, PLAIN), [200, 200, 200]),
        ((LINE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY), [100, 200]),
        ((LINE + b"Content-Length: %d\r\n\r\n" % len(HUGE) + HUGE,), [400]),
        ((LINE + b"Content-Length: 3\r\n\r\nabc", PLAIN), [400, 200]),
        ((LINE.replace(b"POST", b"GET") + b"\r\n", PLAIN), [405, 200]),
        ((LINE.replace(b"add-", b"sub-") + b"Content-Length: 0\r\n\r\n",), [404]),
        ((LINE + b"Content-Length: 300000\r\n\r\n",), [413]),
        ((LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",), [400]),
        ((LINE + b"X: ", b"x" * 20_000), [431]),
        ((b"\x16\x03\x01 no HTTP",), [400]),
    ],
)  # fmt: skip
def test_a_witness_answers_each_request_of_a_connection(
    port: int, pieces: tuple[bytes, ...], statuses: list[int]
) -> None:
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", ask(port, *pieces))] == statuses


def test_a_witness_that_answers_byte_by_byte_is_waited_for_no_longer_than_is_set(
    make_trail: Callable[..., Any], tmp_path: Path
) -> None:
    trail = make_trail()
    trail.add(3)
    log = VerifierKey.parse(trail.layout.vkey.read_text())
    witness = Witness(tmp_path / "witness", "witness.example/w1", [log], lambda: 1_700_000_000.0)
    body = AddCheckpoint(0, (), trail.sealer.checkpoint).encode()
    line = witness.answer(body).body
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(line) + line
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        dripping = threading.Thread(target=drip, args=(listener, answer))  # the whole answer takes some 4 s
        dripping.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = WitnessClient(trail.layout, [(witness.signer.verifier, url)], 0.3)
        client.submit(trail.sealer.checkpoint)
        dripping.join()
    assert "no whole answer" in client.problems["witness.example/w1"]


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must come; it may take its time on a busy machine."""
    with anyio.fail_after(60):
        while not true():
            await anyio.sleep(0.05)


@pytest.mark.parametrize("where", ["witness", "file"])
def test_the_last_records_before_a_quiet_time_are_told_elsewhere_as_well(tmp_path: Path, where: str) -> None:
    """Neither a pace that just told an older head, nor a witness that was away then, leaves them to this home alone."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere" / "head"
    layout = Layout.of(home)
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    vkey = Witness(tmp_path / "witness", "witness.example/w1", [], lambda: 0.0).signer.verifier
    settings = {
        "checkpoint_interval": "50ms", "witness_interval": "1s", "heads_interval": "1s",
        **({"witnesses": [f"{vkey} http://127.0.0.1:{port}"]} if where == "witness" else {"heads": [str(elsewhere)]}),
    }  # fmt: skip
    told = layout.witnessed if where == "witness" else elsewhere

    def size() -> int:
        return Checkpoint.parse(told.read_bytes()).head.size if told.exists() else 0

    async def work() -> None:
        async with running(app, {"home": str(home), "audit": settings}) as live:
            plugin = live.core.plugins["audit"]
            await live.get("/")
            await until(lambda: plugin.health().state == "degraded")  # nobody listens yet
            log = VerifierKey.parse(layout.vkey.read_text())
            witness = await runtime().blocking(Witness, tmp_path / "witness", "witness.example/w1", [log], lambda: 1e9)
            server = WitnessServer(witness, runtime().blocking)
            await runtime().run(server.start, "127.0.0.1", port)
            elsewhere.parent.mkdir()
            await until(lambda: size() > 0)
            before = size()
            await live.get("/")
            await until(lambda: before < size() == plugin.keeper.sealer.checkpoint.head.size)
            assert plugin.health().state == "ok"
            await runtime().run(server.close)

    asyncio.run(work())
