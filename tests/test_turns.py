"""A busy serving loop stands aside for background work that is due, briefly, and for nobody else."""

from __future__ import annotations

import threading
import time
from math import inf

import pytest

from deia_hardening.turns import MOST, SHARE, SLICE, Turns


def test_nobody_is_due_while_everybody_rests() -> None:
    turns = Turns()
    assert turns.due == inf
    turns.wants("writer", 100.0)
    turns.wants("loop", 50.0)
    assert turns.due == 50.0
    turns.rests("loop")
    turns.give(60.0)  # returns at once: the one who was due rests
    assert turns.due == 100.0


def test_a_request_goes_on_as_soon_as_the_work_rests() -> None:
    turns = Turns()
    seen: list[bool] = []

    def work() -> None:
        seen.append(turns.due > 0)
        turns.wants("writer", time.monotonic() + 60)

    turns.wants("writer", 1.0, threading.Thread(target=work).start)
    turns.give(2.0)
    for _ in range(1000):
        if turns.due > time.monotonic() + 30:
            break
        time.sleep(0.001)
    assert seen == [True]
    turns.give(time.monotonic())
    assert turns.due > time.monotonic() + 30


def test_one_is_woken_once_and_only_when_its_time_has_come() -> None:
    turns = Turns()
    woken: list[str] = []
    turns.wants("early", 1.0, lambda: (woken.append("early"), turns.rests("early"))[0])
    turns.wants("late", 1e12, lambda: woken.append("late"))
    turns.give(2.0)
    turns.give(2.0)
    assert woken == ["early"]
    assert turns.due == 1e12


def test_long_work_gets_less_and_less_of_the_time_and_then_none() -> None:
    turns = Turns()
    turns.wants("job")  # and never rests: it computes for long, or waits for a disk that has stalled
    pauses = []
    for _ in range(round(MOST / SLICE) - 1):
        turns.give(turns.due)
        pauses.append(turns.due - time.monotonic())
    assert pauses == sorted(pauses)
    assert pauses[-1] <= MOST * SHARE
    turns.give(turns.due)
    assert turns.due == inf


def test_work_that_did_without_is_given_a_moment_when_it_wants_one_anew() -> None:
    turns = Turns()
    turns.wants("stalled")
    while turns.due < inf:
        turns.give(turns.due)
    turns.wants("stalled")
    assert turns.due == 0.0


def test_two_loops_do_not_stand_aside_for_the_same_work_at_once() -> None:
    turns = Turns()
    reached = threading.Event()
    turns.wants("job", 1.0, reached.set)
    first = threading.Thread(target=turns.give, args=(2.0,))
    first.start()
    assert reached.wait(10)
    turns.give(2.0)
    turns.rests("job")
    first.join(10)
    assert not first.is_alive()


def test_long_work_goes_on_only_while_a_request_stands_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deia_hardening.turns.NOBODY", 60.0)
    turns = Turns()
    done: list[int] = []

    def work() -> None:
        turns.begins("job")
        for number in range(4):
            done.append(number)
            turns.part()
        turns.rests("job")

    turns.wants("job")
    thread = threading.Thread(target=work)
    thread.start()
    seen = []
    while thread.is_alive():
        before = len(done)
        turns.give(time.monotonic())  # a busy loop: one request after the other
        seen.append(len(done) - before)
    thread.join()
    assert done == [0, 1, 2, 3]
    assert max(seen) <= 2  # at most what ran before the first request, and one part
    assert turns.due == inf or turns.due <= time.monotonic()


def test_without_a_busy_loop_work_does_not_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deia_hardening.turns.QUIET", 1e9)
    turns = Turns()
    turns.begins("job")
    turns.part()  # nobody comes: no loop is busy
    assert turns.due == 0.0
    turns.rests("job")
    turns.give(1.0)
    turns.part()
    assert turns.due == inf  # it went on at once


def test_nobody_stands_aside_for_work_that_waits_for_a_disk() -> None:
    turns = Turns()
    turns.begins("job")
    turns.wants("job")
    turns.waits()
    turns.give(1.0)
    assert turns.due == inf


def test_a_thread_that_has_no_turns_just_works() -> None:
    turns = Turns()
    turns.part()
    turns.waits()
    assert turns.due == inf
