"""An index is never trusted: lost, damaged, forged or not there yet, it costs time and no row."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from deia_audit.exporting import export
from deia_audit.keeper import tend
from deia_audit.operation_types import ExportInput
from deia_audit.query import soundness
from deia_audit.query.index import build, index_path
from deia_audit.query.search import Search
from deia_audit.query.soundness import State, index_key, state
from deia_hardening.journal import JournalReader, JournalSettings

from .searching import actor, all_rows, parse, sound


def first_index(trail: Any) -> Path:
    """The index of the first sealed segment, built."""
    segment = next(one for one in JournalReader(trail.layout.log).segments() if not one.live)
    return build(segment, trail.layout.index, trail.layout.keys)


@pytest.mark.parametrize("how", ["missing", "damaged", "emptied", "lying"])
def test_an_index_that_is_lost_or_damaged_is_made_anew(filled: Any, how: str) -> None:
    trail, search, records = filled
    search.run(parse("actor=alice&count=1"))
    search.close()
    for path in trail.layout.index.glob("*.sqlite"):
        if how == "missing":
            path.unlink()
        elif how == "damaged":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        elif how == "emptied":
            path.write_bytes(b"")
        else:
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("DELETE FROM postings WHERE n % 2 = 0")
    expected = [one["seq"] for one in records if actor(one) == "alice"]
    assert [row.seq for row in all_rows(search, "actor=alice&order=asc")] == expected
    assert search.rebuilt


def test_an_index_is_built_where_it_is_looked_for(filled: Any) -> None:
    trail, _search, _records = filled
    segment = next(one for one in JournalReader(trail.layout.log).segments() if not one.live)
    path = build(segment, trail.layout.index, trail.layout.keys)
    assert path == index_path(trail.layout.index, segment)
    assert sound(trail, path)


def test_two_builders_of_one_index_do_not_spoil_it(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(300)
    trail.journal.seal()
    segment = next(one for one in JournalReader(trail.layout.log).segments() if not one.live)
    with ThreadPoolExecutor(4) as pool:
        for _round in range(5):
            index_path(trail.layout.index, segment).unlink(missing_ok=True)
            built = [pool.submit(build, segment, trail.layout.index, trail.layout.keys) for _ in range(4)]
            for one in built:
                assert sound(trail, one.result())


@pytest.mark.parametrize("changed", [b"\x0b", b" ", b"", b"\n\n", b"\r\n"])
def test_a_digest_of_an_index_is_compared_to_its_last_byte(make_trail: Callable[..., Any], changed: bytes) -> None:
    trail = make_trail(settings=JournalSettings(durability="sync", compression="none"))
    trail.journal.append({"kind": "test"})
    trail.journal.drain(30)
    trail.journal.seal()
    path = build(JournalReader(trail.layout.log).segments()[0], trail.layout.index, trail.layout.keys)
    assert sound(trail, path)
    digest = path.with_suffix(".digest")
    digest.write_bytes(digest.read_bytes()[:-1] + changed)
    assert not sound(trail, path)


def test_an_index_is_read_whole_once_and_again_only_when_it_was_changed(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are given back whenever no query comes for a while: opening a hundred again must not take seconds."""
    trail, _, _ = filled
    path = first_index(trail)
    read: list[Any] = []
    real = soundness.file_digest
    monkeypatch.setattr(soundness, "file_digest", lambda file, name: (read.append(file), real(file, name))[1])
    monkeypatch.setattr(soundness, "_SETTLED_NS", 1 << 62)
    assert sound(trail, path) and sound(trail, path)
    assert len(read) == 2  # so young a file may still change without its times telling
    monkeypatch.setattr(soundness, "_SETTLED_NS", -1)
    assert sound(trail, path) and sound(trail, path) and sound(trail, path)
    assert len(read) == 3
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(path.stat().st_atime_ns, 1))
    assert not sound(trail, path) and not sound(trail, path)
    assert len(read) == 5


def test_another_process_does_not_read_a_sound_index_whole_again_unless_it_was_changed(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail, _, _ = filled
    path = first_index(trail)
    monkeypatch.setattr(soundness, "_SETTLED_NS", -1)
    monkeypatch.setattr(soundness, "_found_sound", {})  # as in a process that has just begun
    assert sound(trail, path)
    real, read = soundness.file_digest, []
    monkeypatch.setattr(soundness, "file_digest", lambda file, name: (read.append(file), real(file, name))[1])
    monkeypatch.setattr(soundness, "_found_sound", {})
    assert sound(trail, path) and not read
    key = index_key(trail.layout.keys)
    assert state(path, key, whole=True) is State.SOUND and len(read) == 1  # `audit verify` always does
    checked = path.with_suffix(".checked")
    for forged in (b"", b"0" * 64, checked.read_bytes()[::-1]):
        checked.write_bytes(forged)
        monkeypatch.setattr(soundness, "_found_sound", {})
        read.clear()
        assert sound(trail, path) and len(read) == 1
    monkeypatch.setattr(soundness, "_found_sound", {})
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not sound(trail, path)


def test_an_index_made_without_the_homes_key_is_not_believed(filled: Any) -> None:
    """Who can write the logs but not read the keys can't hide rows: by no digest."""
    trail, search, records = filled
    expected = [one["seq"] for one in records if actor(one) == "alice"]
    assert [row.seq for row in all_rows(search, "actor=alice&order=asc")] == expected
    search.close()
    first, second = [one for one in JournalReader(trail.layout.log).segments() if not one.live][:2]
    path, other = (build(one, trail.layout.index, trail.layout.keys) for one in (first, second))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM postings")
    emptied = path.read_bytes()
    told = path.with_suffix(".digest").read_bytes()
    digest = sha256(emptied).hexdigest()
    head, named, _old, mac, check = told.split(b" ")
    for forged in (
        b" ".join((head, named, digest.encode(), mac, check)),
        soundness.told_digest(b"k" * 32, path, digest),
        f"{digest}\n".encode(),  # as releases before this one wrote it
        other.with_suffix(".digest").read_bytes(),
    ):
        path.unlink()
        path.write_bytes(other.read_bytes() if forged == other.with_suffix(".digest").read_bytes() else emptied)
        path.with_suffix(".digest").write_bytes(forged)
        assert not sound(trail, path), forged
        assert [row.seq for row in all_rows(search, "actor=alice&order=asc")] == expected
        search.close()
        assert sound(trail, path)


def test_an_index_that_is_damaged_behind_the_systems_back_is_seen_as_it_is_read(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail, search, records = filled
    expected = [one["seq"] for one in records if actor(one) == "alice"]
    search.close()
    monkeypatch.setattr(soundness, "_SETTLED_NS", -1)
    for segment in [one for one in JournalReader(trail.layout.log).segments() if not one.live]:
        path = build(segment, trail.layout.index, trail.layout.keys)
        data = path.read_bytes()
        path.write_bytes(data[:8192] + bytes(len(data) - 8192))
        status = path.stat()
        times = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = b"%b%d %d %d %d %d" % (path.with_suffix(".digest").read_bytes(), *times)
        key = index_key(trail.layout.keys)
        assert key is not None
        soundness._keep(path, key, known)  # what a disk forgot leaves inode and times as they were
        assert sound(trail, path)
    assert [row.seq for row in all_rows(search, "actor=alice&order=asc")] == expected


@pytest.mark.parametrize("text", ["actor=alice", "status=500..599", "-kind=http", "q=nightly", "action=GET*", ""])
def test_a_query_does_not_wait_for_an_index_that_is_not_there_yet(filled: Any, text: str) -> None:
    trail, search, _records = filled
    expected = [row.seq for row in all_rows(search, f"{text}&limit=500")]
    shutil.rmtree(trail.layout.index)
    built: list[int] = []

    def elsewhere(segment: Any, folder: Path, keys: Path) -> bool:
        built.append(segment.number)
        build(segment, folder, keys)
        return True

    young = Search(trail.layout, lambda: trail.sealer.checkpoint, elsewhere=elsewhere, waits=False)
    for order in ("desc", "asc"):
        found = [row.seq for row in all_rows(young, f"{text}&limit=37&order={order}")]
        assert found == (expected if order == "desc" else expected[::-1])
        assert not built
    while young.advance():
        pass
    assert built
    assert young._sources.live is None or young._sources.live.rest.first == young._sources.live.rest.stop
    assert [row.seq for row in all_rows(young, f"{text}&limit=37")] == expected
    young.close()


def test_the_live_segments_index_writes_only_what_came(make_trail: Callable[..., Any]) -> None:
    """Each query flushes it: all terms anew for one more record took 150 ms of a busy service."""
    trail = make_trail()
    trail.add(300)
    search = Search(trail.layout, lambda: trail.sealer.checkpoint)
    search.run(parse("kind=test"))
    trail.journal.append({"kind": "test", "action": "test.done"})
    assert trail.journal.drain(30)
    live = search._sources.live
    assert live is not None
    changes = live.index.connection.total_changes
    assert search.run(parse("kind=test")).size == live.end
    assert live.index.connection.total_changes - changes < 20
    search.close()


def test_the_indexes_of_pruned_segments_go(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(20)
    trail.journal.seal()
    trail.add(20)
    (segment,) = [one for one in JournalReader(trail.layout.log).segments() if not one.live]
    path = build(segment, trail.layout.index, trail.layout.keys)
    tend(trail.layout, indexed=False, frozen=False, compressed=False)
    assert path.exists()
    segment.path.unlink()
    tend(trail.layout, indexed=False, frozen=False, compressed=False)
    assert not list(trail.layout.index.glob("0*"))


def test_a_line_that_is_not_quite_json_is_told_of_and_stops_nothing(
    make_trail: Callable[..., Any], tmp_path: Path
) -> None:
    """A release before this one let a client put tabs into a record's trace."""
    trail = make_trail(settings=JournalSettings(durability="sync", compression="none"))
    trail.add(5)
    odd = trail.journal.append_body(b'"id":"i","kind":"http","action":"GET /hidden","trace":"a\tb"')
    garbage = trail.journal.append_body(b'"id":"j","kind":"http","action":"GET /hidden",,')
    trail.add(5)
    search = Search(trail.layout, lambda: trail.sealer.checkpoint)
    for _ in range(2):
        page = search.run(parse("action=GET /hidden&count=1"))
        assert (page.rows, page.damaged) == ((), (odd.seq,))
        page = search.run(parse("-action=GET*&limit=1000&since=1970-01-01"))
        assert {odd.seq, garbage.seq}.isdisjoint(row.seq for row in page.rows) and len(page.rows) > 10
        trail.journal.seal()  # with an index of its own next time
    search.close()
    for kind in ("jsonl", "csv", "ocsf"):
        exported = export(trail.layout, ExportInput(to=str(tmp_path / kind), format=kind))
        assert exported.records == len(list(JournalReader(trail.layout.log).records(0, None)))
