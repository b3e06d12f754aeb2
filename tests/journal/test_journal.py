"""A journal as its callers see it: receipts, durability, bounds, closing, several loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deia_hardening.journal import (
    JournalClosed,
    JournalError,
    JournalFull,
    JournalReader,
    JournalSettings,
    open_journal,
)
from deia_hardening.journal.inlet import IDLE, LED, NO_THREAD


def test_opening_touches_nothing(path: Path) -> None:
    journal = open_journal(path)
    assert not path.parent.exists()
    journal.close()
    assert not path.parent.exists()


@pytest.mark.parametrize("durability", ["sync", "batch", "none"])
def test_a_record_is_durable_after_wait(opened, lines, durability: str) -> None:
    journal = opened(durability=durability)
    receipt = journal.append({"kind": "bot.assigned", "target": "b1"})
    assert receipt.wait(10)
    assert receipt.done()
    assert receipt.seq == 1
    assert lines()[2]["target"] == "b1"


def in_a_thread(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(work).result(30)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_a_thread_that_waits_writes_its_record_itself(opened, lines) -> None:
    journal = opened(durability="sync")
    journal.append({"n": 0}).wait()
    until(lambda: journal._level == IDLE)
    threads: list[int] = []
    journal.on_batch(lambda _: threads.append(threading.get_ident()))

    def work() -> None:
        for number in range(1, 50):
            receipt = journal.append({"n": number})
            assert receipt.wait()
            assert receipt.done()
        assert threading.get_ident() in threads  # now and then the writer's thread is quicker

    in_a_thread(work)
    assert [line["n"] for line in lines()[2:]] == list(range(50))


def test_what_such_a_thread_appends_and_does_not_wait_for_is_written_too(opened) -> None:
    journal = opened(durability="sync", idle_close=60)
    receipts = []

    def work() -> None:
        for _ in range(20):
            journal.append({"n": 1}).wait()
            until(lambda: journal._level in (LED, IDLE))
        receipts.append(journal.append({"n": "left"}))

    in_a_thread(work)
    until(receipts[0].done)


def test_another_thread_beside_such_a_one_is_served_at_once(opened) -> None:
    journal = opened(durability="sync", idle_close=60)
    stop = threading.Event()

    def leading() -> None:
        while not stop.is_set():
            journal.append({"by": "leader"}).wait()

    with ThreadPoolExecutor(1) as threads:
        led = threads.submit(leading)
        for number in range(200):
            assert journal.append({"n": number}).wait(20)
        stop.set()
        led.result(20)
    assert journal.health().ok


def test_a_thread_that_leads_meets_a_failed_sync_as_any_other(opened, path: Path, monkeypatch) -> None:
    journal = opened(durability="sync", retry_interval=0.01, retry_limit=0.02)
    failures = iter([OSError(errno.EIO, "planted")])

    def sync(descriptor: int) -> None:
        for error in failures:
            raise error
        os.fdatasync(descriptor)

    def written() -> bool:
        with contextlib.suppress(JournalError):
            return journal.append({"n": 2}).wait()
        return False

    def work() -> None:
        journal.append({"n": 0}).wait()
        monkeypatch.setattr("deia_hardening.journal.live.sync_file", sync)
        with pytest.raises(JournalError, match="planted"):
            journal.append({"n": 1}).wait()
        until(written)

    in_a_thread(work)
    events = [record.event() for record in JournalReader(path)]
    assert {event["n"] for event in events if "n" in event} == {0, 1, 2}
    assert "journal.fenced" in [event["kind"] for event in events if "kind" in event]


async def test_who_waits_is_woken_also_when_the_journal_is_closed_at_that_moment(opened) -> None:
    journal = opened(durability="sync")
    journal.on_batch(lambda _: None, lambda _: setattr(journal, "_closed", True))  # as close() in another thread does
    async with asyncio.timeout(20):
        await journal.append({"n": 1}).durable()


def test_lines_are_chained_by_the_leaf_hash(opened, path: Path) -> None:
    journal = opened()
    for number in range(100):
        journal.append({"n": number})
    assert journal.drain()
    raw = path.read_bytes().splitlines()
    for before, line in itertools.pairwise(raw[1:]):
        assert hashlib.sha256(b"\0" + before).hexdigest().encode() in line
    verdict = JournalReader(path).verify()
    assert verdict.ok
    assert verdict.records == 101
    assert verdict.head == hashlib.sha256(b"\0" + raw[-1]).digest()


def test_files_are_private(opened, path: Path) -> None:
    opened().append({"a": 1}).wait(10)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_batch_is_written_without_anybody_waiting(opened, path: Path) -> None:
    journal = opened(sync_interval=0.01)
    receipt = journal.append({"n": 1})
    deadline = time.monotonic() + 20
    while not receipt.done() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert receipt.done()
    assert journal.stats().syncs >= 1


def test_an_idle_journal_holds_no_thread_and_no_descriptor(opened) -> None:
    journal = opened(idle_close=0.05)
    for _ in range(3):
        assert journal.append({"n": 1}).wait(10)
        deadline = time.monotonic() + 20
        while (journal._level != NO_THREAD or journal._live.descriptor >= 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert journal._level == NO_THREAD
        assert journal._live.descriptor == -1
    assert JournalReader(journal.path).verify().records == 4


def test_many_journals_fit_under_few_descriptors(tmp_path: Path) -> None:
    journals = [
        open_journal(tmp_path / f"{number}.jsonl", JournalSettings(idle_close=0.02, sync_interval=0.01, reserve=0))
        for number in range(60)
    ]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for start in range(0, 60, 20):
        for journal in journals[start : start + 20]:
            journal.append({"n": 1})
        for journal in journals[start : start + 20]:
            assert journal.drain(30)
        deadline = time.monotonic() + 30
        while (
            any(journal._level != NO_THREAD for journal in journals[start : start + 20]) and time.monotonic() < deadline
        ):
            time.sleep(0.01)
    if before:
        deadline = time.monotonic() + 10
        while len(os.listdir("/proc/self/fd")) > before + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before + 5


def test_a_full_queue_leaves_a_counted_gap(opened, events) -> None:
    journal = opened(max_records=10, on_full="gap", write_interval=0)
    with journal._writer.role:
        receipts = [journal.append({"n": number}) for number in range(25)]
        dropped = [receipt for receipt in receipts if receipt.done()]
        assert len(dropped) == 15
        with pytest.raises(JournalFull, match="gap record counts it"):
            dropped[0].wait()
    assert journal.drain()
    found = events()
    assert [event["n"] for event in found if "n" in event] == list(range(10))
    gap = [event for event in found if event.get("kind") == "journal.gap"]
    assert [(event["count"], event["from"] <= event["to"]) for event in gap] == [(15, True)]
    assert journal.append({"n": "later"}).wait(10)


def test_the_queue_is_bounded_in_bytes(opened) -> None:
    journal = opened(max_bytes=65536, on_full="refuse")
    body = b'"t":"' + b"x" * 1000 + b'"'
    with journal._writer.role:
        with pytest.raises(JournalFull):
            for _ in range(100):
                journal.append_body(body)
        assert journal.stats().queued == 65
    assert journal.drain()


def test_block_waits_for_room(opened) -> None:
    journal = opened(max_records=5, on_full="block", durability="none")
    done = threading.Event()

    def fill() -> None:
        for number in range(50):
            journal.append({"n": number})
        done.set()

    with journal._writer.role:
        thread = threading.Thread(target=fill)
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(20)
    thread.join()
    assert journal.drain()
    assert journal.stats().records == 50


@pytest.mark.parametrize("on_full", ["gap", "block", "refuse"])
def test_what_a_failed_write_brings_back_counts_against_the_bound(opened, monkeypatch, on_full: str) -> None:
    journal = opened(max_records=5, on_full=on_full, durability="sync", retry_interval=0.001, retry_limit=0.001)
    full, stalled = journal._live.append, threading.Event()

    def append(*args: object) -> None:
        stalled.wait(0.05)  # time for others to find room, if there were any
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(journal._live, "append", append)

    def fill() -> None:
        for number in range(50):
            with contextlib.suppress(JournalFull):
                journal.append({"n": number})

    thread = threading.Thread(target=fill)
    thread.start()
    for _ in range(100):
        if journal.stats().failures >= 4:
            break
        journal.drain()
    assert journal.stats().failures >= 4
    assert journal.stats().queued <= 5
    stalled.set()
    monkeypatch.setattr(journal._live, "append", full)
    thread.join(30)
    assert journal.drain(30)
    assert journal.stats().queued_bytes == 0


def test_a_closed_journal_refuses(opened) -> None:
    journal = opened()
    receipt = journal.append({"n": 1})
    journal.close()
    assert receipt.wait(0)
    with pytest.raises(JournalClosed):
        journal.append({"n": 2})


def test_a_second_start_goes_on_where_the_first_ended(path: Path, settings: JournalSettings) -> None:
    for round_number in range(5):
        journal = open_journal(path, settings)
        receipt = journal.append({"round": round_number})
        journal.close()
        assert receipt.seq == round_number + 1
    assert JournalReader(path).verify().ok


def test_threads_append_without_loss(opened) -> None:
    journal = opened(durability="sync")

    def work(name: int) -> None:
        for number in range(500):
            journal.append({"thread": name, "n": number})

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.drain()
    seen: dict[int, int] = {}
    for record in JournalReader(journal.path).records(1):
        event = record.event()
        assert event["n"] == seen.get(event["thread"], -1) + 1  # each thread's order is kept
        seen[event["thread"]] = event["n"]
    assert seen == dict.fromkeys(range(8), 499)


def test_two_journals_on_one_file_interleave(path: Path, opened) -> None:
    one, two = opened(durability="sync"), opened(durability="sync")
    for number in range(40):
        assert (one, two)[number % 2].append({"n": number}).wait(10)
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems
    assert verdict.records == 41


def test_listeners_get_every_line_and_leaf(path: Path, opened) -> None:
    one, two = opened(durability="sync"), opened(durability="sync")
    leaves: dict[int, bytes] = {}
    through: list[int] = []

    def written(batch) -> None:
        raw = path.read_bytes()
        for number, (line, leaf) in enumerate(zip(batch.lines, batch.leaves, strict=True)):
            leaves[batch.first + number] = leaf
        assert raw[batch.offset :].startswith(batch.lines[0])

    one.on_batch(written, synced=through.append)
    one.append({"n": 0}).wait(10)
    for number in range(5):
        two.append({"n": number}).wait(10)
    one.append({"n": 1}).wait(10)
    records = list(JournalReader(path))
    assert leaves == {record.seq: record.leaf for record in records if record.seq > 0}
    assert through[-1] == records[-1].seq


def test_a_listener_that_raises_shows_in_health_and_harms_nothing(opened) -> None:
    journal = opened()

    def bad(batch) -> None:
        raise ValueError("no")

    journal.on_batch(bad)
    assert journal.append({"n": 1}).wait(10)
    assert not journal.health().ok
    assert "ValueError: no" in journal.health().detail


def test_receipts_fail_at_once_when_the_folder_cannot_be_made(tmp_path: Path, settings) -> None:
    (tmp_path / "file").write_text("")
    journal = open_journal(tmp_path / "file" / "log.jsonl", settings)
    with pytest.raises(JournalError, match="not known to be on disk"):
        journal.append({"n": 1}).wait(10)
    assert not journal.health().ok
    assert journal.health().state == "failing"
    journal.close()
