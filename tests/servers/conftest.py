"""Real servers as child processes on loopback; each is ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


class Server:
    """A server process with its port."""

    def __init__(self, command: list[str], port: int, folder: Path, environment: dict[str, str]) -> None:
        self.port = port
        self.folder = folder
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_up(self, path: str = "/", seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.get(path)
                return
            time.sleep(0.05)
        raise AssertionError(f"the server did not come up:\n{self.log.read_text()}")

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def terminate(self, seconds: float = 25) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still up {seconds:g} s after SIGTERM:\n{self.log.read_text()}") from None

    def end(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its own session: itself and the workers it forked
            self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve("uvicorn", "apps:app", "--port", "{port}")` starts a server in a folder with settings and waits for it."""
    servers: list[Server] = []

    def start(*command: str, settings: str = "", path: str = "/", **environment: str) -> Server:
        config = tmp_path / "config"
        config.mkdir(exist_ok=True)
        (config / "hardening.yaml").write_text(f"home: {tmp_path / 'home'}\n{settings}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DEIA", "COV"))}
        full = {
            **inherited, "APP_CONFIG": str(config), "APP_DOWN": str(tmp_path / "down"), "PYTHONPATH": str(HERE),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment,
        }  # fmt: skip
        server = Server([part.format(port=port) for part in command], port, tmp_path, full)
        servers.append(server)
        server.wait_up(path)
        return server

    yield start
    for server in servers:
        server.end()
