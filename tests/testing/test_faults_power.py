"""The power-cut simulator finds the mistakes that lose data, and nothing where there is no mistake."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from deia_hardening.testing import faults

SAVED = "the new settings"


def replace_carefully(folder: Path, text: str, *, sync_file: bool = True, sync_folder: bool = True) -> None:
    """Write beside, fsync, rename, fsync the folder; with a step left out on demand."""
    beside = folder / "state.new"
    with open(beside, "wb") as file:
        file.write(text.encode() * 100)
        file.flush()
        if sync_file:
            os.fsync(file.fileno())
    os.rename(beside, folder / "state")
    if sync_folder:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def losses(trace: faults.Trace, tmp_path: Path, count: int = 120) -> list[str]:
    """After each cut: was what had been acknowledged there, whole?"""
    found = []
    for number, cut in enumerate(faults.power_cuts(trace, count=count, seed=7)):
        target = tmp_path / f"cut-{number}"
        cut.restore(target)
        told = [mark for mark in cut.marks if isinstance(mark, int)]
        state = (target / "state").read_bytes() if (target / "state").exists() else b""
        whole = {f"revision {revision} ".encode() * 100: revision for revision in range(6)}
        if told and whole.get(state, -1) < told[-1]:
            found.append(cut.describe())
    return found


@pytest.mark.parametrize(
    ("sync_file", "sync_folder", "lossless"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_missing_fsync_and_a_missing_folder_fsync_are_caught(
    tmp_path: Path, sync_file: bool, sync_folder: bool, lossless: bool
) -> None:
    folder = tmp_path / "home"
    with faults.recording(folder) as trace:
        for revision in range(6):
            replace_carefully(folder, f"revision {revision} ", sync_file=sync_file, sync_folder=sync_folder)
            trace.mark(revision)
    assert (losses(trace, tmp_path) == []) is lossless


def test_an_append_is_lost_without_fdatasync_only(tmp_path: Path) -> None:
    for synced in (True, False):
        folder = tmp_path / f"home-{synced}"
        folder.mkdir()
        (folder / "log").write_bytes(b"")
        with faults.recording(folder) as trace:
            descriptor = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
            for number in range(30):
                os.write(descriptor, b"%03d " % number * 100)
                if synced:
                    os.fdatasync(descriptor)
                trace.mark(number)
            os.close(descriptor)
        bad = 0
        for cut in faults.power_cuts(trace, count=90, seed=3):
            content = cut.files["log"] or b""
            for number in cut.marks:
                bad += content[number * 400 : number * 400 + 400] != b"%03d " % number * 100
        assert (bad == 0) is synced


def test_the_same_seed_gives_the_same_cuts(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with faults.recording(folder) as trace:
        for number in range(5):
            (folder / f"f{number}").write_text("x" * 5000)
    one, two = (list(faults.power_cuts(trace, count=30, seed=11)) for _ in range(2))
    assert [cut.files for cut in one] == [cut.files for cut in two]
    assert one[0].describe() != next(iter(faults.power_cuts(trace, count=30, seed=12))).describe()


def test_the_layer_sees_the_usual_ways_to_write_and_goes_away(tmp_path: Path) -> None:
    import shutil
    import tempfile

    before = (os.write, open, os.rename)
    folder = tmp_path / "home"
    with faults.recording(folder) as trace:
        (folder / "a").write_text("text ä")
        (folder / "b").write_bytes(b"bytes")
        shutil.copyfile(folder / "a", folder / "c")
        with open(folder / "d", "w+") as file:
            file.write("hello")
            file.seek(0)
            file.truncate(2)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as named:
            named.write(b"temporary")
        os.replace(named.name, folder / "e")
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text("deep")
        (folder / "b").unlink()
        os.sync()
        for path in [*folder.rglob("*"), folder]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    assert (os.write, open, os.rename) == before
    everything = {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }
    last = [cut for cut in faults.power_cuts(trace, count=3000, seed=1) if cut.position == cut.total]
    assert last
    assert {key: value for key, value in last[0].files.items() if key} == everything


CHILD = """
import os, sqlite3, sys
db = sqlite3.connect(os.path.join(sys.argv[1], "db"), isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=" + sys.argv[2])
db.execute("create table if not exists t(n)")
for n in range(12):
    db.execute("insert into t values(?)", (n,))
    print(n, flush=True)
"""


@pytest.mark.fault
@pytest.mark.parametrize(("level", "lossless"), [("full", True), ("off", False)])
def test_sqlite_in_a_child_is_recorded(tmp_path: Path, level: str, lossless: bool) -> None:
    faults.need("strace")
    trace = faults.record_child([sys.executable, "-c", CHILD, str(tmp_path / "home"), level], tmp_path / "home")
    lost = 0
    for number, cut in enumerate(faults.power_cuts(trace, count=60, seed=5)):
        target = tmp_path / f"cut-{number}"
        cut.restore(target)
        told = [int(mark) for mark in cut.marks]
        if not told:
            continue
        try:
            with contextlib.closing(sqlite3.connect(target / "db")) as db:
                found = {row[0] for row in db.execute("select n from t")}
        except sqlite3.DatabaseError:
            found = set()
        lost += not set(told) <= found
    assert (lost == 0) is lossless


def test_syncs_of_two_folders_at_once_are_kept_apart() -> None:
    from deia_hardening.testing.faults.trace import Create, SyncBegin, SyncEnd, Trace

    trace = Trace({"": None, "one": None, "two": None})
    for operation in (
        Create(1, "one", True), Create(2, "two", True), Create(3, "one/a"), Create(4, "two/b"),
        SyncBegin(2, 1), Create(5, "one/c"), SyncBegin(1, 2), SyncEnd(2), SyncEnd(1),
    ):  # fmt: skip
        trace.add(operation)
    for cut in faults.power_cuts(trace, count=200, seed=1):
        if cut.position == cut.total:
            assert {"one/a", "two/b", "one/c"} <= set(cut.files)
