"""The same service twice: bare and hardened, in this process or each in a server process of its own."""

from __future__ import annotations

import contextlib
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


class Served:
    """A service behind uvicorn."""

    def __init__(self, name: str, folder: Path, hardened: bool, environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        folder.mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DEIA", "COV"))}
        full = {**inherited, "APP": name, "PYTHONPATH": str(HERE), **environment}
        if hardened:
            full["APP_HOME"] = str(folder / ".deia")
        self.log = folder / "server.log"
        command = [sys.executable, "-m", "uvicorn", "--factory", "apps:make", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=full, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_up(self) -> None:
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            time.sleep(0.05)
        raise AssertionError(f"the server did not come up:\n{self.log.read_text()}")

    def raw(self, request: bytes, *parts: bytes) -> tuple[str, list[str], bytes]:
        """Status line, header lines in their order (Date apart), and every byte after them (chunk frames too)."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            connection.sendall(request)
            for part in parts:
                connection.sendall(part)
            answer = b""
            while data := connection.recv(65536):
                answer += data
        head, _, rest = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        return status, [line for line in lines if not line.lower().startswith("date:")], rest

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(30)
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[Served, Served]]]:
    """`served("webhook")` gives the service twice: (bare, hardened), each up."""
    up: list[Served] = []

    def start(name: str, **environment: str) -> tuple[Served, Served]:
        bare = Served(name, tmp_path / f"bare-{len(up)}", False, environment)
        up.append(bare)
        hardened = Served(name, tmp_path / f"hardened-{len(up)}", True, environment)
        up.append(hardened)
        bare.wait_up()
        hardened.wait_up()
        return bare, hardened

    yield start
    for one in up:
        one.stop()
    for bare, hardened in zip(up[::2], up[1::2], strict=True):
        assert ("Traceback" in bare.log.read_text()) == ("Traceback" in (told := hardened.log.read_text())), told
        assert any((hardened.folder / ".deia" / "logs").glob("audit-trail*")), "the hardened service was not hardened"


@pytest.fixture
def five(home: Path) -> dict[str, Any]:
    """Settings with all five plugins on."""
    return {"home": str(home), "audit": {}, "config": {}, "degradation": {}, "migration": {}, "recovery": {}}
