"""Reading SQLite's log: what a power cut leaves of a commit under way is no loss, what is missing of older ones is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from deia_recovery.engine.wal import read_wal

HEADER, HEAD, PAGE, SECTOR = 32, 24, 4096, 512
ACROSS = 42
"""A frame whose head lies across two sectors; so does every 64th after it."""


def at(frame: int) -> int:
    """Where a frame begins, counted from 1."""
    return HEADER + (frame - 1) * (HEAD + PAGE)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log whose older generation has a commit in each frame; in the new one 39 have, and a longer commit follows."""
    database = tmp_path / "a.db"
    path = tmp_path / "a.db-wal"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        connection.executemany("INSERT INTO t VALUES (?, zeroblob(3000))", [(k,) for k in range(20)])
        for commits in (80, ACROSS - 3):
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            for turn in range(commits):
                connection.execute("UPDATE t SET v = ? WHERE k = 1", (b"%03d" % turn * 1000,))
        (tmp_path / "before").write_bytes(path.read_bytes())
        connection.execute("UPDATE t SET v = ? WHERE k >= 10", (b"new" * 1000,))
        (tmp_path / "after").write_bytes(path.read_bytes())
    return path


def test_a_head_that_a_power_cut_tore_is_no_later_commit(log: Path) -> None:
    before = (log.parent / "before").read_bytes()
    after = (log.parent / "after").read_bytes()
    assert at(ACROSS) // SECTOR != (at(ACROSS) + HEAD - 1) // SECTOR
    torn = bytearray(after)
    older = before[at(ACROSS) : at(ACROSS) + 8]
    assert any(older[4:]), "the older generation had a commit in this frame"
    assert not any(after[at(ACROSS) + 4 : at(ACROSS) + 8]), "the new one has none"
    for lost in (at(ACROSS) // SECTOR, at(ACROSS - 1) // SECTOR + 2):  # the head's beginning, and a page's sector
        torn[lost * SECTOR : (lost + 1) * SECTOR] = before[lost * SECTOR : (lost + 1) * SECTOR]
    log.write_bytes(torn)
    state = read_wal(log)
    assert state.frames == ACROSS - 3, "all that was synced is there"
    assert not state.lost, state.detail


@pytest.mark.parametrize("frame", [1, 20, ACROSS - 4])
@pytest.mark.parametrize("place", [0, 9, 18, HEAD, HEAD + 2000])
def test_an_older_commit_that_broke_is_a_loss(log: Path, frame: int, place: int) -> None:
    broken = bytearray((log.parent / "after").read_bytes())
    broken[at(frame) + place] ^= 1
    log.write_bytes(broken)
    state = read_wal(log)
    assert state.frames == frame - 1
    assert state.lost
