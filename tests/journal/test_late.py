"""Records whose bytes the writer makes: bounded, ordered and never lost, as those that were encoded by the caller."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.journal import JournalClosed, JournalError, JournalFull, Late


class Number(Late, gc=False, eq=False):
    """A record that is its number; a negative one can't be encoded."""

    number: int = 0

    @classmethod
    def _encode(cls, records: list[Any]) -> None:
        for record in records:
            if record.number < 0:
                raise ValueError("no bytes for this one")
            MADE.append(record.number)
            record._body = record._inlet._fitted(b'"n":%d' % record.number)


MADE: list[int] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    MADE.clear()


def late(number: int, guess: int = 10) -> Number:
    return Number(b"", 1_700_000_000_000_000_000, None, None, None, True, guess, number)  # type: ignore[arg-type]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["n"] for event in events if "n" in event]


def test_late_records_stand_where_they_were_appended(opened, events) -> None:
    journal = opened(write_interval=10)
    receipts = [journal.append_late(late(n)) if n % 3 else journal.append({"n": n}) for n in range(30)]
    assert not MADE  # nothing is encoded by the caller
    assert journal.drain()
    assert numbers(events()) == list(range(30))
    assert [receipt.seq for receipt in receipts] == list(range(1, 31))
    assert all(receipt.wait(10) for receipt in receipts)


def test_the_time_of_a_late_record_is_that_of_its_appending(opened, lines) -> None:
    journal = opened()
    journal.append_late(late(1))
    assert journal.drain()
    assert lines()[-1]["time"] == "2023-11-14T22:13:20.000000Z"


def test_what_is_guessed_counts_against_the_bound_in_bytes(opened, events) -> None:
    journal = opened(max_bytes=65536, on_full="refuse")
    with journal._writer.role:
        with pytest.raises(JournalFull):
            for number in range(100):
                journal.append_late(late(number, 1000))
        assert (journal.stats().queued, journal.stats().queued_bytes) == (65, 65000)
    assert journal.drain()
    assert numbers(events()) == list(range(65))
    assert journal.stats().queued_bytes == 0


def test_what_finds_no_room_is_counted_in_a_gap(opened, events) -> None:
    journal = opened(max_records=10, write_interval=0)
    with journal._writer.role:
        receipts = [journal.append_late(late(number)) for number in range(25)]
        with pytest.raises(JournalFull):
            receipts[10].wait()
    assert journal.drain()
    assert numbers(events()) == list(range(10))
    assert [event["count"] for event in events() if event.get("kind") == "journal.gap"] == [15]


def test_large_queues_are_written_in_parts(opened, events) -> None:
    journal = opened(batch_bytes=65536)
    with journal._writer.role:
        for number in range(200):
            journal.append_late(late(number, 1000))
    assert journal.drain()
    assert journal.stats().batches >= 4
    assert numbers(events()) == list(range(200))


def test_one_that_cannot_be_encoded_leaves_a_trace_and_takes_no_other_with_it(opened, events) -> None:
    journal = opened()
    with journal._writer.role:
        for number in (1, 2, -1):
            journal.append_late(late(number))
        last = journal.append({"n": 3})
    assert journal.drain()
    assert last.seq == 4
    assert numbers(events()) == [1, 2, 3]
    assert [event["error"] for event in events() if event.get("kind") == "journal.unencoded"] == [
        "ValueError: no bytes for this one"
    ]


def test_after_a_failed_write_the_same_bytes_are_tried_again(
    opened, events, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    journal = opened(retry_interval=0.001, retry_limit=0.001, write_interval=0)
    real, failures = os.write, iter([True, True])

    def write(descriptor: int, data: Any) -> int:
        if b'"n":' in bytes(data) and next(failures, False):
            raise OSError(28, "no room")
        return real(descriptor, data)

    with journal._writer.role:
        receipt = journal.append_late(late(7))
        monkeypatch.setattr(os, "write", write)
        assert not journal._flush()
        assert journal.stats().queued == 1
    with pytest.raises(JournalError):
        receipt.wait(10)
    assert journal.drain() or journal.drain()
    assert numbers(events()) == [7]
    assert MADE == [7]


def test_a_body_that_breaks_the_line_is_kept_as_text(opened, events) -> None:
    class Broken(Late, gc=False, eq=False):
        @classmethod
        def _encode(cls, records: list[Any]) -> None:
            for record in records:
                record._body = record._inlet._fitted(b'"n":\n1')

    journal = opened()
    journal.append_late(Broken(b"", 1, None))  # type: ignore[arg-type]
    assert journal.drain()
    assert numbers(events()) == [1]


def test_bytes_that_are_made_while_they_wait_leave_the_account_even(opened, events) -> None:
    """Else a journal that is emptied in parts would in the end take itself for full, with nothing in its queue."""
    journal = opened(batch_bytes=65536, write_interval=10)
    with journal._writer.role:
        for number in range(1300):
            journal.append_late(late(number, 1000))
        assert len(MADE) > 500  # the writer is behind: what waits is bytes, not what they would be made of
        left = []
        for _ in range(20):
            left.append(len(journal._take(65536)[0]))
            journal._written()
        assert (sum(left), journal.stats().queued_bytes) == (1300, 0)


def test_one_appended_before_the_close_is_written_and_one_after_it_is_refused(opened, events) -> None:
    journal = opened(write_interval=10)
    before = [journal.append_late(late(number)) for number in range(5)]
    assert journal.close()
    assert all(receipt.done() for receipt in before)
    with pytest.raises(JournalClosed):
        journal.append_late(late(5))
    assert numbers(events()) == [0, 1, 2, 3, 4]


def test_a_late_record_wakes_a_writer_that_sleeps(opened, events) -> None:
    journal = opened(write_interval=0, sync_interval=0, idle_close=3600)
    for number in range(100):
        journal.append_late(late(number))
        deadline = time.monotonic() + 60
        while journal.stats().records <= number:  # nobody waits for the record: nothing but its appending wakes
            assert time.monotonic() < deadline
            time.sleep(0.0005 * (number % 3))  # at different moments of its falling asleep
    assert numbers(events()) == list(range(100))


def test_where_the_caller_must_be_told_each_record_is_judged_by_itself(opened, events) -> None:
    journal = opened(max_records=3, on_full="refuse", write_interval=10)
    with journal._writer.role:
        for number in range(3):
            journal.append_late(late(number))
        for number in range(3, 6):
            with pytest.raises(JournalFull):
                journal.append_late(late(number))
    assert journal.drain()
    assert numbers(events()) == [0, 1, 2]
