"""Readers: by seq, by time, following over rotations; retention and compression underneath."""

from __future__ import annotations

import datetime
import gzip
import threading
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.journal import JournalReader, JournalSettings, Segment, open_journal
from deia_hardening.journal.blockgz import BLOCK, BlockReader, DamagedBlock, compress_file
from deia_hardening.journal.segments import to_prune

START = 1_700_000_000_000_000_000


@pytest.fixture
def filled(path: Path, settings: JournalSettings) -> Path:
    """500 records, one a second, in several segments, the older ones compressed."""
    journal = open_journal(path, attrs.evolve(settings, segment_age=0, batch_bytes=65536))
    for number in range(1, 501):
        journal.append({"n": number, "pad": "x" * (number % 50)}, now_ns=START + number * 10**9)
        if number % 120 == 0:
            journal.seal()
    journal.drain()
    journal.maintain()
    journal.close()
    return path


def test_every_record_is_found_by_seq(filled: Path) -> None:
    reader = JournalReader(filled)
    assert [segment.compressed for segment in reader.segments()] == [True] * 4 + [False]
    for seq in (0, 1, 119, 120, 121, 122, 300, 480, 481, 500):
        record = reader.get(seq)
        assert record is not None
        assert record.seq == seq
        assert record.event().get("n", 0) == seq
        again = reader.read_at(record.segment, record.offset)
        assert again == record
    assert reader.get(501) is None
    assert [record.seq for record in reader.records(118, 125)] == list(range(118, 125))
    assert reader.verify().ok


def test_the_end_is_found_without_reading_all(filled: Path) -> None:
    reader = JournalReader(filled)
    last = reader.last()
    assert last is not None
    assert last.seq == 500
    assert [record.seq for record in reader.tail(25)] == list(range(476, 501))
    assert reader.tail(0) == []


@pytest.mark.parametrize("second", [60, 119, 120, 121, 250, 480, 481, 499, 500])
def test_a_time_is_found(filled: Path, second: int) -> None:
    reader = JournalReader(filled)
    assert reader.seek_time(START + second * 10**9) == second
    moment = datetime.datetime.fromtimestamp(START // 10**9 + second, datetime.UTC)
    assert reader.seek_time(moment - datetime.timedelta(microseconds=1)) == second
    assert reader.seek_time(START + 10**15) == 501


def test_a_reader_of_nothing_is_empty(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "none.jsonl")
    assert (list(reader), reader.last(), reader.segments(), reader.get(0)) == ([], None, [], None)
    assert reader.verify().ok


def test_following_sees_all_over_rotations(opened, path: Path) -> None:
    journal = opened(compression="gzip", durability="sync")
    journal.append({"n": 0}).wait(10)
    seen: list[int] = []
    done = threading.Event()

    def follow() -> None:
        for record in JournalReader(path).follow(start=1, poll=0.002, stop=done.is_set):
            event = record.event()
            if "n" in event:
                seen.append(event["n"])
            if len(seen) == 60:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(1, 60):
        journal.append({"n": number}).wait(10)
        if number % 10 == 0:
            journal.seal()
    thread.join(30)
    done.set()
    assert seen == list(range(60))


def test_retention_deletes_whole_segments_and_records_it(opened, path: Path) -> None:
    journal = opened(segment_bytes=4096, retain_bytes=1, compression="none")
    for number in range(20):
        journal.append({"n": number, "pad": "x" * 900})
        journal.drain()
    journal.maintain()
    reader = JournalReader(path)
    assert len(reader.segments()) <= 2  # the record of the deletion may itself have begun a new one
    pruned = [record.event() for record in reader if record.event().get("kind") == "journal.pruned"]
    first = next(iter(reader))
    assert pruned[-1]["through"] == first.seq - 1
    assert reader.verify().ok


def test_a_segment_that_is_held_stays(opened, path: Path) -> None:
    journal = opened(retain_bytes=1, compression="none")
    journal.guard_retention(lambda segment: segment.number == 2)
    for number in range(4):
        journal.append({"n": number}).wait(10)
        journal.seal()
    journal.maintain()
    assert [segment.number for segment in JournalReader(path).segments()] == [2, 3, 4, 5]
    assert JournalReader(path).verify().ok


def test_a_log_whose_beginning_was_deleted_by_hand_does_not_verify(opened, path: Path) -> None:
    journal = opened(compression="none")
    journal.append({"n": 1}).wait(10)
    journal.seal()
    journal.append({"n": 2}).wait(10)
    journal.close()
    next(path.parent.glob("*.000001.*")).unlink()
    assert [problem.kind for problem in JournalReader(path).verify().problems] == ["pruned"]


segments = st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 100)), max_size=12).map(
    lambda found: [
        Segment(number, number * 10, Path(f"s{number}"), size, False, False, age)
        for number, (size, age) in enumerate(found, 1)
    ]
)


@given(segments, st.floats(0, 100), st.integers(0, 3000), st.integers(0, 3000), st.sets(st.integers(1, 12)))
def test_retention_takes_a_run_of_the_oldest_and_never_what_is_held(
    sealed: list[Segment], age: float, room: int, need: int, held: set[int]
) -> None:
    gone = to_prune(
        sealed, now=100, retain_age=age, retain_bytes=room, need=need, held=lambda segment: segment.number in held
    )
    assert gone == sealed[: len(gone)]
    assert not any(segment.number in held for segment in gone)
    left = sealed[len(gone) :]
    if left and left[0].number not in held:
        assert not (room and sum(segment.size for segment in left) > room)
        assert not (age and 100 - left[0].modified > age)
        assert sum(segment.size for segment in gone) >= need or not left


def pack(source: Path, target: Path) -> None:
    with open(target, "wb") as file:
        compress_file(source, file.fileno())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 * BLOCK + 5), st.data())
def test_compressed_text_is_read_anywhere(tmp_path_factory, size: int, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("gz")
    text = bytes(number % 251 for number in range(size))
    (folder / "a").write_bytes(text)
    pack(folder / "a", folder / "a.gz")
    assert gzip.decompress((folder / "a.gz").read_bytes() or gzip.compress(b"")) == text
    with BlockReader(folder / "a.gz") as reader:
        offset = data.draw(st.integers(0, size))
        count = data.draw(st.integers(0, size))
        assert reader.read(offset, count) == text[offset : offset + count]
        assert reader.length() == size
        assert b"".join(reader.blocks(offset)) == text[offset:]


def test_a_damaged_block_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"line of text\n" * 20_000)
    pack(tmp_path / "a", tmp_path / "a.gz")
    whole = (tmp_path / "a.gz").read_bytes()
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 0x10
        (tmp_path / "a.gz").write_bytes(changed)
        with BlockReader(tmp_path / "a.gz") as reader:
            try:
                text = b"".join(reader.blocks())
            except DamagedBlock:
                continue
            assert text == b"line of text\n" * 20_000  # padding bits of deflate: nothing of the text changed
