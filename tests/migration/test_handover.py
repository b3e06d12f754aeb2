"""A version's process outlives the worker that supervises it: what it holds in memory is there after any roll."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.blocking, pytest.mark.fault]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def owner(service: Any, but: int = 0) -> int:
    """The worker that holds the lock of the children, once it is another one than `but`."""
    inode = (service.home / "run" / "children.lock").stat().st_ino
    found: list[int] = []

    def holds() -> bool:
        with open("/proc/locks") as locks:
            fields = [line.split() for line in locks if "->" not in line]
        found[:] = [int(one[4]) for one in fields if one[5].endswith(f":{inode}") and int(one[4]) != but]
        return bool(found)

    service.until(holds)
    return found[0]


class Sessions(threading.Thread):
    """Clients with sessions, all the time: a broken one is told."""

    def __init__(self, service: Any, number: int = 5) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.open = [service.session() for _ in range(number)]
        self.broken: list[str] = []
        self.turns = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.turns += 1
            for index, (number, count, pid) in enumerate(self.open):
                try:
                    again, now, by = self.service.session(number)
                except (OSError, http.client.HTTPException):
                    continue  # the worker that had this connection was killed; the session is asked for again
                except AssertionError as error:
                    self.broken.append(str(error))
                    return
                if (again, by) != (number, pid) or now <= count:
                    self.broken.append(f"{number} used {count} times in {pid} became {again} {now} in {by}")
                    return
                self.open[index] = (number, now, pid)

    def end(self) -> None:
        self.over.set()
        self.join()
        assert self.broken == []
        assert self.turns


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sessions_in_a_versions_process_survive_rolls_and_kills_of_the_workers(
    front: Callable[..., Any], workers: str
) -> None:
    service = front("--workers", workers, "--drain", "1s")
    service.migrate("beside")
    sessions = Sessions(service)
    (child,) = {pid for _, _, pid in sessions.open}
    sessions.start()
    service.restart()
    for _ in range(2):
        before = sessions.turns
        service.until(lambda before=before: sessions.turns > before + 5)
        killed = owner(service)
        assert killed != child
        os.kill(killed, signal.SIGKILL)
        service.until(lambda killed=killed: gone(killed))
        owner(service, but=killed)
    service.process.send_signal(signal.SIGHUP)
    before = sessions.turns
    service.until(lambda: sessions.turns > before + 20 or sessions.broken)
    sessions.end()
    # It dies like any child, and is started again by who supervises now.
    os.kill(child, signal.SIGKILL)
    service.until(lambda: service.session()[2] != child)
    second = service.session()[2]
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0, service.log.read_text()
    assert gone(second)


def test_with_the_whole_service_its_versions_processes_end(front: Callable[..., Any]) -> None:
    service = front("--workers", "2")
    service.migrate("beside")
    child = service.session()[2]
    os.killpg(service.process.pid, signal.SIGKILL)  # supervisor and workers at once; the child has a group of its own
    service.process.wait()
    service.until(lambda: gone(child))


def test_without_its_supervisor_a_service_ends_with_its_versions_processes(front: Callable[..., Any]) -> None:
    service = front("--workers", "2", "--drain", "0s")
    service.migrate("beside")
    child = service.session()[2]
    service.process.kill()
    service.process.wait()
    service.until(lambda: gone(child))


def test_a_kept_process_that_no_version_wants_any_more_is_ended(front: Callable[..., Any]) -> None:
    service = front("--workers", "1", "--drain", "0s")
    service.migrate("beside")
    child = service.session()[2]
    variables = '"beside": {"variables": {"NEW": "1"}, '
    (service.folder / "main.py").write_text(service.MAIN.replace('"beside": {', variables))
    service.restart()  # it was started for another order: the new worker starts one of its own
    service.until(lambda: gone(child))
    assert service.session()[2] != child


def test_a_rollout_goes_on_with_its_processes_when_the_supervisor_itself_is_replaced(
    front: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from pathlib import Path

    import deia_hardening

    installed = tmp_path / "installed"
    source = Path(str(deia_hardening.__file__)).parent
    shutil.copytree(source, installed / "deia_hardening", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(installed))
    service = front("--drain", "0s")
    service.migrate("beside")
    sessions = Sessions(service)
    sessions.start()
    changed = installed / "deia_hardening" / "cli" / "run.py"
    changed.write_text(changed.read_text().replace("goes on as the code on disk", "is another release"))
    service.restart()
    service.until(lambda: "is another release" in service.log.read_text())
    killed = owner(service)
    os.kill(killed, signal.SIGKILL)  # what the new supervisor keeps is as good as what the one before did
    owner(service, but=killed)
    before = sessions.turns
    service.until(lambda: sessions.turns > before + 5 or sessions.broken)
    sessions.end()
    assert json.loads((service.home / "run").joinpath(child_record(service)).read_text())["pid"] == sessions.open[0][2]


def child_record(service: Any) -> str:
    return next(path.name for path in (service.home / "run").glob("child-*.json"))
