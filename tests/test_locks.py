"""A child that is forked while its parent holds a file's lock does not hold it, also when the parent dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.journal import JournalSettings, open_journal
from deia_hardening.journal.disk import FolderLock
from deia_hardening.locks import lock, unlock
from deia_hardening.store.epoch import HomePage

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def within(seconds: float, work: Callable[[], object]) -> bool:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_what_is_unlocked_is_free_though_a_child_was_forked_meanwhile(
    tmp_path: Path, forked: Any, is_free: Any
) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    lock(descriptor)
    with forked():
        assert not is_free(tmp_path)
        unlock(descriptor)
        assert is_free(tmp_path)


def test_a_parent_that_is_killed_leaves_no_lock_to_its_child(tmp_path: Path, is_free: Any) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        lock(os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC))
        if os.fork() == 0:
            os.write(writing, b"%d\n" % os.getpid())
        signal.pause()
    os.close(writing)
    with open(reading, "rb") as told:
        grandchild = int(told.readline())
    try:
        assert not is_free(tmp_path)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert is_free(tmp_path)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_child_forked_while_the_logs_folder_changes_holds_up_no_rotation(tmp_path: Path, forked: Any) -> None:
    settings = JournalSettings(reserve=0, durability="sync", compression="none")
    journal = open_journal(tmp_path / "log.jsonl", settings)
    assert journal.append({"n": 0}).wait(30)
    folder = FolderLock(tmp_path)
    with folder.held():
        held = forked()
        held.__enter__()
    try:
        assert within(30, journal.seal)
    finally:
        held.__exit__(None, None, None)
    journal.close()


def test_a_child_forked_while_the_page_is_written_holds_up_no_writer(tmp_path: Path, forked: Any) -> None:
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b'"FULL"', 1)])
    with page._writing():
        held = forked()
        held.__enter__()
    try:
        assert within(30, lambda: page.publish([("mode", b'"DEGRADED"', 2)]))
    finally:
        held.__exit__(None, None, None)
    assert page.state().get("mode") == "DEGRADED"


def test_in_a_child_unlock_leaves_what_has_the_number_now(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    lock(descriptor)
    number = os.fork()
    if number == 0:
        other = os.open(tmp_path, os.O_RDONLY)
        unlock(descriptor)
        try:
            os._exit(0 if other == descriptor and os.fstat(other) else 1)
        except OSError:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
    unlock(descriptor)
