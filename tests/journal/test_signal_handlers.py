"""What a signal handler appends while its thread is in the middle of an append of its own."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deia_hardening.journal import JournalReader


@contextmanager
def interrupted(handler: Callable[[], object], seconds: float) -> Iterator[None]:
    """This thread, every `seconds`, for `handler`."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_append_while_its_thread_does(opened) -> None:
    journal = opened(max_records=10**6)
    seen: list[Any] = []
    with interrupted(lambda: seen.append(journal.append({"by": "handler"})), 0.0005):
        for number in range(20_000):
            journal.append({"n": number})
    assert journal.drain()
    assert seen
    assert all(receipt.done() for receipt in seen)
    assert JournalReader(journal.path).verify().records == 20_001 + len(seen)


def test_one_writer_starts_when_a_signal_handler_appends_as_it_starts(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(idle_close=60)
    real, started = _thread.start_new_thread, []

    def start(function: Any, *rest: Any) -> int:
        if getattr(function, "__self__", None) is journal:
            started.append(function)
            if len(started) == 1:
                journal.append({"by": "handler"})
        return real(function, *rest)

    monkeypatch.setattr(_thread, "start_new_thread", start)
    journal.append({"n": 0})
    assert len(started) == 1
    assert journal.drain()
    assert JournalReader(journal.path).verify().records == 3
