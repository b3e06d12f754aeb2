"""Bare and hardened behind real servers: the same bytes on the wire, header for header and chunk for chunk."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .test_servers import PYTHON

SERVERS = {
    "uvicorn httptools": [PYTHON, "-m", "uvicorn", "sink:app", "--http", "httptools", "--port", "{port}"],
    "uvicorn h11": [PYTHON, "-m", "uvicorn", "sink:app", "--http", "h11", "--loop", "asyncio", "--port", "{port}"],
    "granian": ["granian", "--interface", "asgi", "sink:app", "--port", "{port}"],
    "hypercorn": [PYTHON, "-m", "hypercorn", "sink:app", "--bind", "127.0.0.1:{port}"],
    "hypercorn trio": [PYTHON, "-m", "hypercorn", "-k", "trio", "sink:app", "--bind", "127.0.0.1:{port}"],
}
BOUNDARY = (
    b"--b\r\nContent-Disposition: form-data; name=file; filename=a.bin\r\n\r\n" + b"z" * 70_000 + b"\r\n--b--\r\n"
)
UPLOAD = [b"Content-Type: multipart/form-data; boundary=b", b"Content-Length: %d" % len(BOUNDARY)]
REQUESTS: list[tuple[bytes, list[bytes], bytes]] = [
    (b"GET /state", [], b""),
    (b"HEAD /state", [], b""),
    (b"GET /sync", [], b""),
    (b"GET /file", [], b""),
    (b"HEAD /file", [], b""),
    (b"GET /file", [b"Range: bytes=3-9"], b""),
    (b"GET /file", [b"Range: bytes=0-1,5-9"], b""),
    (b"GET /file", [b"Range: bytes=999999-"], b""),
    (b"GET /static/apps.py", [b"Range: bytes=-5"], b""),
    (b"GET /static/nothing", [], b""),
    (b"POST /upload", UPLOAD, BOUNDARY),
    (b"POST /upload", [b"Content-Length: 0"], b""),
    (b"POST /echo", [b"Transfer-Encoding: chunked"], b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    (b"POST /echo", [b"Content-Length: 5", b"Expect: 100-continue"], b"hello"),
    (b"GET /events", [], b""),
    (b"GET /fails", [], b""),
    (b"GET /fails-late", [], b""),
    (b"GET /teapot", [], b""),
    (b"GET /away", [], b""),
    (b"DELETE /state", [], b""),
    (b"OPTIONS *", [], b""),
    (b"GET /inner/where?a=1&a=%C3%A9", [], b""),
    (b"GET /inner/nothing", [], b""),
    (b"GET /raw/", [], b""),
    (b"GET /openapi.json", [], b""),
    (b"GET /deia/nothing-of-ours-else", [b"X-Long: " + b"x" * 8000], b""),
    (b"GET /state", [b"X-Forwarded-For: 1.2.3.4", b"X-Request-Id: mine"], b""),
    (b"BREW /state", [], b""),
    (b"GET /st\xc3\xa4te", [], b""),
]
VARIES = re.compile(rb"(?im)^(date|last-modified|etag): [^\r]*|(?<=boundary=)\w+|--[0-9a-f]{26,}")


def ask(port: int, line: bytes, headers: list[bytes], body: bytes) -> bytes:
    """Every byte of the answer, what is random in it apart. Chunks that a server merges count as one."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        head = [line + b" HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close", *headers]
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except TimeoutError:  # what a server leaves open bare, it is to leave open hardened
            answer += b"(left open)"
        except ConnectionError:
            answer += b"(reset)"
    return VARIES.sub(b"(varies)", answer.replace(str(port).encode(), b"PORT"))


def websockets(port: int) -> list[Any]:
    seen: list[Any] = []
    for path, said in (
        ("/ws", ["a", b"b" * 70_000, "bye"]),
        ("/ws", ["policy"]),
        ("/ws", ["x"]),
        ("/refused", []),
        ("/denied", []),
        ("/nothing", []),
    ):
        try:
            with connect(f"ws://127.0.0.1:{port}{path}", subprotocols=["chat"], compression=None) as one:  # type: ignore[list-item]
                assert one.response is not None
                seen.append((one.subprotocol, one.response.headers.get("x-own")))
                for text in said:
                    one.send(text)
                    if text not in ("bye", "policy"):
                        seen.append(one.recv(10))
                if said and said[-1] in ("bye", "policy"):
                    one.recv(10)
        except ConnectionClosed as closed:
            seen.append(closed.rcvd)
        except InvalidStatus as refused:
            answer = refused.response
            seen.append((answer.status_code, answer.headers.get("x-own"), answer.body))
    return seen


def conversation(port: int) -> list[Any]:
    seen: list[Any] = [(line, ask(port, line, headers, body)) for line, headers, body in REQUESTS]
    return seen + websockets(port)


SLOW = ("uvicorn h11", "hypercorn trio")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SERVERS]


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_on_the_wire_are_the_bare_apps(name: str, serve: Callable[..., Any], tmp_path: Path) -> None:
    if "hypercorn" in name:
        pytest.importorskip("hypercorn", reason="hypercorn is not installed")
    bare = serve(*SERVERS[name], path="/state")
    expected = conversation(bare.port)
    assert expected[0][1].startswith(b"HTTP/1.1 200")
    bare.end()
    hardened = serve(*SERVERS[name], path="/state", SINK_HOME=str(tmp_path / "hardened"))
    seen = conversation(hardened.port)
    for one, other in zip(seen, expected, strict=True):
        assert one == other
    assert any((tmp_path / "hardened" / "logs").glob("audit-trail*")), "the hardened app was not hardened"
