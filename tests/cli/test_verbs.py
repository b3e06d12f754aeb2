"""The command line as a person or a script meets it: help, exit codes, JSON, and nothing that steers a terminal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deia_hardening.cli.output import json_text, show

APP = """
from deia_hardening import harden


async def bare(scope, receive, send):
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hi"})


app = harden(bare, "config")
"""


class Shell:
    """Runs the command in a folder with settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "100"}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deia_hardening.cli", *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("shell")
    (folder / "config").mkdir()
    (folder / "config" / "a.yaml").write_text(f"home: {folder / 'home'}\naudit: {{}}\nconfig: {{}}\n")
    (folder / "service.py").write_text(APP)
    return Shell(folder)


@pytest.fixture(scope="module")
def running(shell: Shell) -> Iterator[Shell]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deia_hardening.cli", "run", "service:app", "--port", str(port), "-c", "config"]
    log = (shell.folder / "log").open("wb")
    process = subprocess.Popen(
        [*command, "--lame-duck", "0s"], cwd=shell.folder, env=shell.environment, stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 60
        while shell("status", "-c", "config").returncode:
            assert process.poll() is None and time.monotonic() < deadline, (shell.folder / "log").read_text()
        yield shell
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def test_help_is_made_from_the_operations(shell: Shell) -> None:
    top = shell("--help", "-c", "config")
    assert top.returncode == 0
    for word in ("run", "check", "audit", "config", "token", "service", "status"):
        assert word in top.stdout
    verb = shell("token", "create", "--help", "-c", "config")
    for word in ("--name", "--role", "--ttl", "--json", "--reason", "--config"):
        assert word in verb.stdout


def test_without_a_service_a_verb_says_so_and_fails(shell: Shell) -> None:
    asked = shell("token", "list", "-c", "config")
    assert asked.returncode == 1 and asked.stdout == ""
    assert "no service answers at" in asked.stderr and "Traceback" not in asked.stderr


def test_a_wrong_command_line_is_2(shell: Shell) -> None:
    for words in (["nosuch"], ["token", "create", "-c", "config"]):
        asked = shell(*words)
        assert asked.returncode == 2 and "Traceback" not in asked.stderr, asked


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("run service:app --lame-duck abc", 1, "--lame-duck: 'abc' is not a duration"),
        ("run service:app --drain 5", 1, "did you mean 5s?"),
        ("run service:app --log-level loud", 2, "loud"),
        ("run service:app --port 99999", 2, "<= 65535"),
        ("demo --port 70000", 2, "<= 65535"),
        ("demo --seconds -1", 2, ">= 0"),
        ("demo --seconds 1 --folder service.py", 1, "service.py/.deia: Not a directory"),
        ("init service.py", 1, "service.py: File exists"),
        ("check .service:app", 1, "'.service:app' is not an import string"),
        ("check ../config/service.py:app", 1, "is not an import string"),
        ("check nowhere.py:app", 1, "No module named 'nowhere'"),
    ],
)
def test_a_wrong_value_is_told_in_a_sentence(shell: Shell, words: str, code: int, said: str) -> None:
    ended = shell(*words.split())
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert said in " ".join(ended.stderr.replace("│", " ").split())


def test_an_app_may_be_named_by_its_file(shell: Shell) -> None:
    assert shell("check", "./service.py:app").returncode == shell("check", "service.py").returncode == 0


def test_what_an_apps_own_code_raises_is_told_with_its_traceback(shell: Shell) -> None:
    (shell.folder / "broken.py").write_text("raise RuntimeError('boom')\n")
    ended = shell("check", "broken:app")
    assert ended.returncode == 1
    assert 'broken.py", line 1' in ended.stderr


def test_in_a_folder_that_is_gone_it_says_so(tmp_path: Path) -> None:
    (folder := tmp_path / "gone").mkdir()
    command = f"rmdir '{folder}'; exec '{sys.executable}' -m deia_hardening.cli status"
    own = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # Python 3.13 dies of a relative one
    asked = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=own, capture_output=True, text=True, timeout=60, check=False
    )
    assert asked.returncode == 1
    assert "change to one that exists" in asked.stderr and "Traceback" not in asked.stderr


def test_settings_that_are_wrong_are_told_with_their_place(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("audit:\n  gurantee: batch\n")
    asked = shell("check", "--config", str(tmp_path))
    assert asked.returncode == 1
    assert "bad.yaml:2:3" in asked.stderr and "guarantee" in asked.stderr and "Traceback" not in asked.stderr


def test_verbs_talk_to_the_running_service(running: Shell) -> None:
    status = running("status", "-c", "config", "--json")
    assert status.returncode == 0 and json.loads(status.stdout)["state"] == "ready"
    made = running("token", "create", "--name", "ci", "--role", "viewer", "--json", "-c", "config")
    assert made.returncode == 0 and json.loads(made.stdout)["token"].startswith("deia_")
    refused = running("token", "create", "--name", "ci", "-c", "config")
    assert refused.returncode == 1 and refused.stderr.startswith("409 Conflict: ") and refused.stdout == ""
    listed = running("token", "list", "-c", "config")
    assert listed.returncode == 0 and "ci" in listed.stdout and "deia_" not in listed.stdout
    assert running("token", "revoke", "--id", "ci", "--yes", "-c", "config").returncode == 0


EVIL = "\x1b[2J\x07\x9b31m\u202eevil[bold]\udc80"


def test_a_change_may_hang_on_the_revision_that_it_was_decided_on(running: Shell) -> None:
    revision = json.loads(running("config", "status", "--json", "-c", "config").stdout)["revision"]
    change = ("config", "set", "config.history", "50", "-c", "config", "--reason", "a test")
    assert running(*change, "--if-revision", str(revision)).returncode == 0
    lost = running("config", "set", "config.history", "60", "-c", "config", "--if-revision", str(revision))
    assert lost.returncode == 1 and f"revision {revision + 1} is in force, not {revision}" in lost.stdout + lost.stderr
    assert (
        running("config", "unset", "config.history", "-c", "config", "--if-revision", str(revision + 1)).returncode == 0
    )
    assert "--if-revision" not in running("token", "create", "--help", "-c", "config").stdout


def test_shown_data_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"rows": [{EVIL: EVIL}], f"{EVIL}s": [{"a": 1}]}
    show({"name": EVIL, EVIL: 1, "list": [EVIL], "deep": {EVIL: {"a": EVIL}}, **rows}, False)
    show({EVIL: EVIL}, True)
    shown = capsys.readouterr().out
    assert "[bold]" in shown
    assert not any((ord(each) < 32 and each != "\n") or each in "\x07\x1b\x9b\u202e\udc80" for each in shown)


def test_times_are_shown_as_times(capsys: pytest.CaptureFixture[str]) -> None:
    show({"since": 1.5e9, "never": {"at": 0.0}, "size": 1.5e9, "past": [{"at": 1.5e9, "who": "me"}]}, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count("2017-07-14 02:40:00Z") == 2 and "at  -" in shown and "1.5e+09" in shown


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_for_programs_means_the_same_and_can_be_written(ascii_only: bool) -> None:
    text = json_text({EVIL: ["ü", EVIL]}, ascii_only)
    text.encode("utf-8")
    assert json.loads(text) == {EVIL: ["ü", EVIL]}
