"""The front itself is replaced: the supervisor of `run` holds the socket, workers roll, nobody is refused or cut."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from deia_hardening.control.client import Step
from deia_hardening.problem import Problem

pytestmark = pytest.mark.blocking


class Load(threading.Thread):
    """Keep-alive clients (GET and POST) that do what the headers say, and count what went wrong."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.answered = 0
        self.names: set[str] = set()
        self.failed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                more = True
                while more and not self.over.is_set():
                    connection.request("POST" if self.answered % 2 else "GET", "/", body=b"x")
                    answer = connection.getresponse()
                    more = not answer.will_close
                    self.names.add(answer.read().decode().split()[0])
                    assert answer.status == 200
                    self.answered += 1
                    if self.answered % 50 == 0:
                        time.sleep(0.2)  # idle for a while, so that a roll meets idle connections too
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failed.append(repr(error))
            finally:
                connection.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_workers_are_replaced_under_load_and_no_request_is_lost(front: Callable[..., Any], workers: str) -> None:
    service = front("--workers", workers, "--drain", "3s")
    before = service.workers()
    clients = [Load(service.port) for _ in range(3)]
    for client in clients:
        client.start()
    (service.folder / "main.py").write_text(service.MAIN.replace('"one"', '"two"'))
    with connect(f"ws://127.0.0.1:{service.port}/ws") as websocket:
        websocket.send("hello")
        held = int(str(websocket.recv()).split()[1])
        slow = subprocess.Popen(  # a stream that spans the roll ends whole
            [sys.executable, "-c", f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{service.port}/slow').read())"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        told = service.restart()
        assert len(told[-1]["workers"]) == int(workers)
        assert sum(isinstance(step, Step) for step in told) == int(workers)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                websocket.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert slow.communicate()[0].strip().endswith(b"end'")
    service.until(lambda: service.get().startswith("two"))
    after = service.workers()
    for client in clients:
        client.over.set()
        client.join()
        assert client.failed == []
        assert "two" in client.names
    assert held in before
    assert not before & after
    assert after <= set(told[-1]["workers"])


def test_new_code_that_does_not_start_leaves_the_old_worker_serving(front: Callable[..., Any]) -> None:
    service = front()
    before = service.workers()
    (service.folder / "main.py").write_text("raise RuntimeError('no such table')")
    with pytest.raises(Problem) as refused:
        service.restart()
    assert refused.value.status == 503
    assert "serve on" in refused.value.detail
    assert service.workers() == before
    assert "no such table" in service.log.read_text()
    (service.folder / "main.py").write_text(service.MAIN.replace('"one"', '"two"'))
    service.restart()
    service.until(lambda: service.get().startswith("two"))


def test_sighup_rolls_and_sigterm_ends_all(front: Callable[..., Any]) -> None:
    service = front("--workers", "2")
    before = service.workers()
    service.process.send_signal(signal.SIGHUP)
    service.until(lambda: len(found := service.workers()) == 2 and not found & before)
    after = service.workers()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0, service.log.read_text()
    for pid in before | after:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_is_killed_is_replaced_and_nobody_is_refused_meanwhile(front: Callable[..., Any]) -> None:
    service = front()
    (pid,) = service.workers(3)
    os.kill(pid, signal.SIGKILL)
    assert pid != int(service.get().split()[1])  # the connection waited in the socket that the supervisor holds
    assert "SIGKILL" in service.log.read_text()


def test_a_second_worker_that_is_killed_while_it_starts_does_not_end_the_first(front: Callable[..., Any]) -> None:
    service = front("--workers", "2")  # it answers as soon as the first one serves
    started = f"/proc/{service.process.pid}/task/{service.process.pid}/children"
    first = service.workers(1)
    for _ in range(2):
        service.until(lambda: set(map(int, Path(started).read_text().split())) - first)
        for pid in set(map(int, Path(started).read_text().split())) - first:
            os.kill(pid, signal.SIGKILL)
    service.until(lambda: len(service.workers()) == 2)
    assert first < service.workers()


def test_a_supervisor_that_is_killed_leaves_the_address_to_the_next_one(front: Callable[..., Any]) -> None:
    service = front()
    (pid,) = service.workers(3)
    service.process.kill()
    service.process.wait()
    with connect_when_free(service.port):
        pass
    service.until(lambda: not alive(pid))


def connect_when_free(port: int) -> socket.socket:
    from deia_hardening.cli.listening import bind_tcp

    return bind_tcp("127.0.0.1", port)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_supervisor_takes_up_its_own_new_code_and_keeps_its_process_id(
    front: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release of this package is installed over the running one: workers and supervisor follow, the id stays."""
    import shutil

    import deia_hardening

    source = Path(str(deia_hardening.__file__)).parent
    installed = tmp_path / "installed"
    shutil.copytree(source, installed / "deia_hardening", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(installed))
    service = front()
    (before,) = service.workers(3)
    changed = installed / "deia_hardening" / "cli" / "run.py"
    changed.write_text(changed.read_text().replace("goes on as the code on disk", "is another release"))
    service.restart()
    service.until(lambda: f"supervisor {service.process.pid} is another release" in service.log.read_text())
    service.until(lambda: before not in service.workers(3))
    (second,) = service.workers(3)
    service.restart()  # it knows the workers that it took over
    service.until(lambda: second not in service.workers(3))
    service.until(lambda: not alive(before) and not alive(second))
    assert service.log.read_text().count("is another release") == 1
    service.process.send_signal(signal.SIGTERM)  # the same process all the time
    assert service.process.wait(60) == 0, service.log.read_text()


def test_bad_settings_are_told_once_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("async def app(scope, receive, send): ...")
    (tmp_path / "hardening.yaml").write_text("migration:\n  tick: soon\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEIA", "COV"))}
    done = subprocess.run(
        [sys.executable, "-m", "deia_hardening.cli", "run", "main:app", "--config", "hardening.yaml", "--port", "0",
         "--workers", "2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("hardening.yaml:2:") == 1


def test_without_run_the_operation_says_who_restarts(pair: Any, tmp_path: Path) -> None:
    from deia_hardening.services import Services
    from deia_hardening.workers import RestartInput, restart_operation

    async def ask() -> None:
        async for _ in restart_operation(Services()).handler(RestartInput(), None):  # type: ignore[arg-type, union-attr]
            pass

    import asyncio

    with pytest.raises(Problem) as refused:
        asyncio.run(ask())
    assert refused.value.status == 409
    assert json.dumps(refused.value.detail).count("deia-hardening run")
