"""SIGTERM with endless streams open: unready, drained to a deadline, the app's and the plugins' stop run, exit."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .test_servers import COMMANDS

NAMES = (
    "uvicorn", "uvicorn --workers", "granian", "gunicorn", "hypercorn", "deia-hardening run",
    "deia-hardening run --workers",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_endless_streams_do_not_hold_up_the_stop(name: str, serve: Callable[..., Any]) -> None:
    if name == "hypercorn":
        pytest.importorskip("hypercorn", reason="hypercorn is not installed")
    environment = {"DEIA__REQUESTS__DRAIN": "300ms", "DEIA__REQUESTS__LAME_DUCK": "0s"}
    server = serve(*COMMANDS[name], settings="audit: {}\n", **environment)
    stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    stream.request("GET", "/endless")
    answer = stream.getresponse()
    assert answer.read(6) == b"data: "
    with connect(f"ws://127.0.0.1:{server.port}/ws") as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"
        server.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=10)
    if name not in ("granian", "hypercorn"):  # granian sends no close frame, hypercorn one of its own
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    stream.close()
    assert set((server.folder / "down").read_text().split()) == {"down"}  # once per worker


def test_ctrl_c_ends_endless_streams_at_their_deadline_too(serve: Callable[..., Any]) -> None:
    """uvicorn would wait for them, and cut them after 25 s: most people press again by then, which is a crash."""
    environment = {"DEIA__REQUESTS__DRAIN": "300ms"}
    server = serve(*COMMANDS["deia-hardening run"], settings="audit: {}\n", **environment)
    with connect(f"ws://127.0.0.1:{server.port}/ws") as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"
        stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        stream.request("GET", "/endless")
        answer = stream.getresponse()
        assert answer.read(6) == b"data: "
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    stream.close()
    assert server.process.wait(60) == 0
    assert (server.folder / "down").read_text().split() == ["down"]
