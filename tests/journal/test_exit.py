"""At a process's end what was appended is written: by `exit`, in a child, from other threads, beside a failing log."""

from __future__ import annotations

import _thread
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from deia_hardening.journal import JournalReader, JournalSettings, open_journal


def numbers(path: Path) -> list[object]:
    return [event["n"] for record in JournalReader(path) if "n" in (event := record.event())]


EXIT = """
import sys, threading
from deia_hardening.journal import open_journal, JournalSettings
journal = open_journal(sys.argv[1], JournalSettings(sync_interval=60, write_interval=10, idle_close=60))
import atexit
atexit.register(lambda: journal.append({"n": "at exit"}))
class Late:
    def __del__(self):
        journal.append({"n": "at the very end"})
late = Late()
sys.modules["kept"] = late
for number in range(1000):
    journal.append({"n": number})
"""


def test_the_interpreters_exit_writes_what_is_queued(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(path) == [*range(1000), "at exit", "at the very end"]


EXIT_BESIDE_A_FAILING_ONE = """
import atexit, sys
journals = []
atexit.register(lambda: [journal.append({"n": 2}) for journal in journals])  # runs after the journals' own
from deia_hardening.journal import open_journal
journals += [open_journal("/proc/none/log"), *(open_journal(f"{sys.argv[1]}-{number}") for number in range(8))]
for journal in journals:
    journal.append({"n": 1})
"""


def test_at_exit_a_log_that_cannot_be_written_takes_no_other_with_it(path: Path) -> None:
    command = [sys.executable, "-c", EXIT_BESIDE_A_FAILING_ONE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["/proc/none/log"]  # said, in one sentence
    assert [numbers(Path(f"{path}-{number}")) for number in range(8)] == [[1, 2]] * 8


LATER = """
import atexit, sys
journals = []
atexit.register(lambda: [journal.append({"n": "later"}) for journal in journals])  # runs after the journals' own
from deia_hardening.journal import open_journal, JournalSettings
settings = JournalSettings(write_interval=10, idle_close=60, durability=sys.argv[2])
journals += [open_journal(f"{sys.argv[1]}-{number}", settings) for number in range(4)]
for journal in journals:
    journal.append({"n": 1}).wait(30)
    journal.append({"n": 2})
"""


@pytest.mark.parametrize("durability", ["sync", "batch"])
def test_what_is_appended_after_the_journals_own_exit_is_written_too(path: Path, durability: str) -> None:
    command = [sys.executable, "-c", LATER, str(path), durability]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [numbers(Path(f"{path}-{number}")) for number in range(4)] == [[1, 2, "later"]] * 4


CHILD = """
import multiprocessing, sys
from deia_hardening.journal import open_journal, JournalSettings
journal = open_journal(sys.argv[1], JournalSettings(write_interval=10))
def work(number):
    journal.append({"n": number})
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    journal.append({"n": 0})
    for number in (1, 2):
        child = multiprocessing.Process(target=work, args=(number,))
        child.start()
        child.join()
        assert child.exitcode == 0
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_of_multiprocessing_writes_what_it_appended(path: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    command = [sys.executable, "-W", "ignore", str(script), str(path), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(str, numbers(path))) == ["0", "1", "2"]


def test_when_no_thread_can_be_had_for_a_moment_the_next_record_starts_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(path, JournalSettings(write_interval=0, idle_close=60))
    with monkeypatch.context() as patch:

        def no_thread(*_: object) -> int:
            raise RuntimeError("can't start new thread")

        patch.setattr(_thread, "start_new_thread", no_thread)
        journal.append({"n": 0})
        assert numbers(path) == [0]
        failing = open_journal("/proc/none/log", JournalSettings(write_interval=0, idle_close=60, reserve=0))
        failing.append({"n": 0})
        assert failing.health().state == "failing"
    started: list[object] = []
    start = _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", lambda *args: (started.append(args), start(*args))[1])
    assert journal.append({"n": 1}).wait(30)
    assert len(started) == 1
    journal.close()
    failing.close()
