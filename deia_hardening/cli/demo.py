"""`deia-hardening demo`: the example bot service, hardened, with a little traffic, and what to look at next."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deia_hardening.cli.output import err, say
from deia_hardening.errors import HardeningError

TEXT = (
    "Bots fail. A bot that fails should be passed over. A service that passes failing bots over stays up. "
    "Its users notice only that it is slower. That is the whole idea of degradation."
)
WORK = [("summary", TEXT), ("arithmetic", "(17 + 4) * 2"), ("statistics", TEXT), ("arithmetic", "2 / 0")]
START_LIMIT = 60.0


def example_folder() -> Path:
    """Where the example is: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package / "_demo", package.parent / "examples" / "bot_service"):
        if (folder / "bot_service" / "main.py").is_file():
            return folder
    raise HardeningError("the example bot service is not in this installation")


class Client:
    """One connection to the demo."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json"} if payload else {})
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None
        finally:
            connection.close()


def run_demo(seconds: float, port: int, folder: Path | None) -> int:
    """Run it; returns the exit code."""
    example = example_folder()
    port = _port(port)
    made = folder is None
    work = Path(tempfile.mkdtemp(prefix="deia-demo-")) if folder is None else folder.absolute()
    config = work / ".deia" / "config"
    if not config.exists():
        shutil.copytree(example / ".deia" / "config", config)
    environment = {**os.environ, "BOT_SERVICE_CONFIG": str(config), "PYTHONPATH": str(example)}
    environment.pop("DEIA_HOME", None)
    command = [sys.executable, "-m", "deia_hardening.cli", "run", "bot_service.main:app", "--port", str(port)]
    service = subprocess.Popen([*command, "--log-level", "warning"], env=environment, cwd=work)
    try:
        client = Client(port)
        _wait_until_up(client, service)
        say(f"The bot service runs on http://127.0.0.1:{port}, hardened by {config / 'hardening.yaml'}")
        _traffic(client)
        _what_to_look_at(work, port, service.pid)
        made = _linger(service, seconds, work) and made
        return 0
    except KeyboardInterrupt:
        return 0
    finally:
        if service.poll() is None:
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(30)
            except subprocess.TimeoutExpired:
                service.kill()
        if made:
            shutil.rmtree(work, ignore_errors=True)


def _port(port: int) -> int:
    """The port, or a free one for 0. Raises HardeningError when something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise HardeningError(f"can't listen on 127.0.0.1:{port}: {error.strerror}; name another --port") from None
        return int(probe.getsockname()[1])


def _wait_until_up(client: Client, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise HardeningError(
                f"the demo service ended at once with exit code {service.returncode}; its output says why"
            )
        try:
            if client.call("GET", "/")[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    raise HardeningError(f"the demo service did not come up within {START_LIMIT:g} s")


def _traffic(client: Client) -> None:
    for skill in ("summary", "arithmetic", "statistics"):
        client.call("POST", "/api/bots", {"id": f"{skill}-1", "skill": skill})
        client.call("POST", f"/api/bots/{skill}-1/launch")
    submitted = []
    for number, (skill, text) in enumerate(WORK):
        status, task = client.call("POST", "/api/tasks", {"skill": skill, "text": text, "priority": number})
        if status == 202:
            submitted.append(task["id"])
    deadline = time.monotonic() + 15
    say("")
    for task_id in submitted:
        while time.monotonic() < deadline:
            task = client.call("GET", f"/api/tasks/{task_id}")[1]
            if task["state"] not in ("ready", "leased", "delayed"):
                break
            time.sleep(0.05)
        outcome = json.dumps(task["result"]) if task["state"] == "done" else task["error"]
        say(f"  {task['skill']:<11} {task['state']:<6} {str(outcome)[:80]}")


def _what_to_look_at(work: Path, port: int, process: int) -> None:
    logs = work / ".deia" / "logs"
    config = work / ".deia" / "config"
    command = _command()
    say("")
    say("Look at:")
    say(f"  http://127.0.0.1:{port}/docs   the service's own pages, untouched")
    for name in sorted(path.name for path in logs.glob("*.jsonl")):
        say(f"  {logs / name}")
    say("")
    say("Try next, in another terminal:")
    say(f"  cd {work}")
    for verb, effect in (
        ("service status", "what runs, and how it is"),
        ("audit query --limit 10", "who did what, when, with what outcome"),
        ("audit verify", "the trail proves that nobody changed it; edit a line of it and ask again"),
        ("degradation pin MAINTENANCE --ttl 30s --reason trying", "refusals with Retry-After, then all is well again"),
        ("migration start 2", "version 2 takes 10%, then 50%, then all; GET / tells which one answered"),
        ("recovery take", "a snapshot, proven restorable"),
    ):
        say(f"  {command} {verb:<54} {effect}")
    say(f"  edit {config / 'hardening.yaml'}, app: max_bots: 2, and save: in force within a moment")
    say(f"  kill -9 {process}, then  {command} demo --folder {work}: nothing that was acknowledged is lost")
    say("")


def _command() -> str:
    """How this command was called, for another terminal in another folder."""
    called = Path(sys.argv[0])
    return str(called.absolute()) if called.name == "deia-hardening" else f"{sys.executable} -m deia_hardening.cli"


def _linger(service: subprocess.Popen[bytes], seconds: float, work: Path) -> bool:
    """Wait for the end; false when the service was killed, so that its folder is kept."""
    if not seconds:
        err.print("Ctrl-C ends the demo.")
    deadline = time.monotonic() + seconds if seconds else None
    while service.poll() is None and (deadline is None or time.monotonic() < deadline):
        time.sleep(0.1)
    if service.poll() == -signal.SIGKILL:
        say(f"The service was killed. Start it again:  {_command()} demo --folder {work}")
        return False
    if service.poll() is not None and service.returncode not in (0, -signal.SIGTERM):
        raise HardeningError(f"the demo service ended with exit code {service.returncode}")
    return True
