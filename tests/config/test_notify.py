"""Whoever waits for changed files is told of each kind of change, and comes back when it is to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deia_config.notify import Inotify, Watchfiles

_LONG = 30.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


class Waiting:
    """A notifier with the thread that waits by it."""

    def __init__(self, kind: Any, paths: list[Path]) -> None:
        self.notifier = kind([str(path) for path in paths], 0.01)
        self.told = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self.notifier.wait():
            self.told.set()
        self.notifier.close()

    def after(self, change: Callable[[], Any]) -> bool:
        self.told.clear()
        change()
        return self.told.wait(_LONG)

    def ends(self) -> bool:
        self.notifier.stop()
        self.thread.join(_LONG)
        return not self.thread.is_alive()


@pytest.fixture(params=[Inotify, Watchfiles])
def waiting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Waiting]:
    (tmp_path / "a.yaml").write_text("a: 1")
    found = Waiting(request.param, [tmp_path, tmp_path / "a.yaml"])
    yield found
    assert found.ends()


def test_each_kind_of_change_is_told(waiting: Waiting, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    changes: list[Callable[[], Any]] = [
        lambda: file.write_text("a: 2"),
        lambda: (tmp_path / "beside").write_text("a: 3"),
        lambda: (tmp_path / "beside").rename(file),
        lambda: file.chmod(0o600),
        lambda: (tmp_path / "below").mkdir(),
        lambda: (tmp_path / "link").symlink_to("a.yaml"),
        lambda: file.unlink(),
    ]
    for number, change in enumerate(changes):
        assert waiting.after(change), number


def test_what_happens_at_once_in_thousands_is_told_too(waiting: Waiting, tmp_path: Path) -> None:
    def many() -> None:
        for number in range(3000):
            (tmp_path / f"n{number % 50}").write_text("")

    assert waiting.after(many)
    assert waiting.after(lambda: (tmp_path / "a.yaml").write_text("after it"))


def test_a_stop_before_the_wait_ends_it(tmp_path: Path) -> None:
    notifier = Inotify([str(tmp_path)], 5.0)
    notifier.stop()
    assert not notifier.wait()
    notifier.close()
    notifier.stop()  # too late, and harmless
    notifier.close()


def test_reading_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1")
    notifier = Inotify([str(tmp_path), str(tmp_path / "a.yaml")], 0.01)
    assert (tmp_path / "a.yaml").read_text() == "a: 1"
    assert os.listdir(tmp_path) == ["a.yaml"]
    assert not select.select([notifier._events], [], [], 0)[0]
    (tmp_path / "a.yaml").write_text("a: 2")
    assert select.select([notifier._events], [], [], 0)[0]
    notifier.close()


def watching() -> int:
    """How many of this process's descriptors are inotify's; others may come and go in other threads."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += "inotify" in os.readlink(f"/proc/self/fd/{name}")
    return found


def test_a_path_that_is_not_there_is_named_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = watching()
    with pytest.raises(OSError, match="missing") as raised:
        Inotify([str(tmp_path), str(tmp_path / "missing")], 0.01)
    assert raised.value.errno == errno.ENOENT
    assert watching() == before
