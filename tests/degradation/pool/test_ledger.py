"""Budgets in files that the workers of a machine map: one account for all of them, whatever happens to one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_degradation.pool import ledger as ledger_module
from deia_degradation.pool.budget import Bounds, Budget, Reservation
from deia_degradation.pool.ledger import Busy, Ledger

BOUND = Bounds(tokens=100.0, per=60.0)


class Worker:
    """One worker's view, without a process of its own: file locks exclude it from the others all the same."""

    def __init__(self, folder, bounds=BOUND):
        self.folder, self.bounds = folder, bounds
        self.start()

    def start(self):
        self.ledger = Ledger()
        self.budget = Budget(self.bounds, self.ledger.accounts("quotas", 3, 8, learns=True), "key")
        self.ledger.open(self.folder)
        assert not self.ledger.trouble

    def killed(self):
        """What the kernel does: locks are gone, and the mapped file stays as it is."""
        for held in (self.ledger._lock.descriptor, self.ledger._place):
            os.close(held)
        self.start()


@pytest.fixture
def workers(tmp_path):
    made = []

    def start(bounds=BOUND):
        made.append(Worker(tmp_path / "budgets", bounds))
        return made[-1]

    yield start
    for one in made:
        one.ledger.close()


steps = st.tuples(st.integers(0, 2), st.floats(0.0, 20.0), st.floats(0.1, 60.0), st.floats(0.0, 1.0),
                  st.sampled_from(["settle", "hold", "cancel", "kill"]))  # fmt: skip


@given(st.lists(steps, max_size=60))
def test_in_no_stretch_of_a_period_all_workers_together_are_granted_more_than_the_bound(calls):
    """Kills and new starts in between: what a killed worker had set aside counts as used."""
    with tempfile.TemporaryDirectory() as folder:
        three = [Worker(Path(folder)) for _ in range(3)]
        now, granted = 0.0, []
        for which, step, tokens, share, what in calls:
            now += step
            worker = three[which]
            found = worker.budget.reserve(now, tokens=tokens)
            if what == "kill":
                worker.killed()
            if not isinstance(found, Reservation):
                assert found > now
                continue
            used = tokens
            if what == "settle":
                used = tokens * share
                worker.budget.settle(found, now, tokens=used)
            elif what == "cancel":
                used = 0.0
                worker.budget.cancel(found, now)
            granted.append((now, used))
        for start, _ in granted:
            assert sum(used for when, used in granted if start <= when < start + 60.0) <= 100.0 + 1e-6
        for worker in three:
            worker.ledger.close()


@given(st.lists(st.tuples(st.sampled_from(["call", "count", "answer", "kill"]), st.integers(0, 9)), max_size=80))
def test_what_an_upstream_says_is_not_overdrawn_by_several_workers(steps):
    """Ten a window, as in `test_budget.py`. A killed worker's calls are counted there or not; nobody is told."""
    with tempfile.TemporaryDirectory() as folder:
        two = [Worker(Path(folder), Bounds()) for _ in range(2)]
        counted, sent, answers = 0, [], []

        def act(what, which):
            nonlocal counted
            worker = two[which % 2]
            if what == "call":
                found = worker.budget.reserve(0.0)
                if isinstance(found, Reservation):
                    sent.append((worker, found))
            elif what == "count" and sent:
                counted += 1
                answers.append((*sent.pop(which % len(sent)), 10 - counted))
            elif what == "answer" and answers:
                owner, reservation, left = answers.pop(which % len(answers))
                owner.budget.learn("requests", left, 0.0, 60.0, known=reservation)
                owner.budget.settle(reservation, 0.0)
            elif what == "kill":  # what it had sent arrives all the same
                counted += sum(owner is worker for owner, _ in sent)
                sent[:] = [one for one in sent if one[0] is not worker]
                answers[:] = [one for one in answers if one[0] is not worker]
                worker.killed()

        for what in ("call", "count", "answer"):  # before the first answer nothing is known
            act(what, 0)
        for what, which in steps:
            act(what, which)
            assert counted + len(sent) <= 10
        assert isinstance(two[0].budget.reserve(60.0), Reservation)
        for worker in two:
            worker.ledger.close()


def test_what_a_dead_worker_had_under_way_holds_up_nobody_for_ever(workers):
    one, two = workers(Bounds()), workers(Bounds())
    for _ in range(8):
        assert isinstance(one.budget.reserve(0.0), Reservation)
    two.budget.learn("requests", 9, 0.0, 60.0)  # eight calls beside it may not have been counted yet
    assert isinstance(two.budget.reserve(0.0), Reservation)
    assert two.budget.reserve(0.0) == pytest.approx(60.0)
    one.killed()
    two.budget.learn("requests", 9, 61.0, 60.0)
    assert [isinstance(two.budget.reserve(61.0), Reservation) for _ in range(9)] == [True] * 8 + [False]


def test_nor_does_it_where_no_other_takes_its_place(workers):
    one, two = workers(Bounds()), workers(Bounds())
    for _ in range(8):
        assert isinstance(one.budget.reserve(0.0), Reservation)
    two.ledger.forget_dead()  # nobody is
    two.budget.learn("requests", 9, 0.0, 60.0)
    assert [isinstance(two.budget.reserve(0.0), Reservation) for _ in range(2)] == [True, False]
    one.ledger.close()
    two.ledger.sync()
    two.budget.learn("requests", 9, 61.0, 60.0)
    assert [isinstance(two.budget.reserve(61.0), Reservation) for _ in range(9)] == [True] * 8 + [False]


SPENDER = """
import os, sys, time
from pathlib import Path
from deia_degradation.pool.budget import Bounds, Budget, Reservation
from deia_degradation.pool.ledger import Busy, Ledger

ledger = Ledger()
budget = Budget(Bounds(requests=20000, per=86400.0), ledger.accounts("quotas", 3, 8, learns=True), "key")
ledger.open(Path(sys.argv[1]))
granted = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
until = time.monotonic() + 300.0
while time.monotonic() < until:
    try:
        if isinstance(budget.reserve(time.monotonic()), Reservation):
            os.write(granted, b"1")
    except Busy:
        pass
"""


def _used(worker):
    """However busy the machine is."""
    while True:
        with contextlib.suppress(Busy):
            return worker.budget.used(time.monotonic())["requests"]


@pytest.mark.blocking
def test_processes_that_spend_at_once_and_are_killed_at_any_moment_overdraw_nothing(tmp_path):
    """Each call that was let in is counted, though its process was killed in the next moment, and none is let in beyond
    the bound."""
    watcher = Worker(tmp_path / "budgets", Bounds(requests=20000, per=86400.0))
    granted = tmp_path / "granted"
    command = [sys.executable, "-c", SPENDER, str(watcher.folder), str(granted)]
    for goal in (2000, 5000, 8000, 20000):
        spenders = [subprocess.Popen(command) for _ in range(2)]
        deadline = time.monotonic() + 240
        try:
            while _used(watcher) < goal:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            for one in spenders:
                one.kill()
                one.wait()
        used = _used(watcher)
        assert used - 8 <= granted.stat().st_size <= used <= 20000
    assert used == 20000
    assert not isinstance(watcher.budget.reserve(time.monotonic()), Reservation)
    watcher.ledger.close()


def test_a_worker_that_starts_while_another_has_the_accounts_in_its_hands_waits_for_it(tmp_path, monkeypatch):
    """On a busy machine that other waits for the processor; who does not wait for it has a budget of its own."""
    (tmp_path / "lock").touch()
    held = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(ledger_module.time, "sleep", lambda _: fcntl.flock(held, fcntl.LOCK_UN))
    ledger = Ledger()
    ledger.accounts("quotas", 3, 8, learns=True)
    ledger.open(tmp_path)
    os.close(held)
    assert not ledger.trouble
    ledger.close()


def test_a_forked_child_counts_with_its_parent_once_it_has_started(workers, tmp_path):
    parent = workers(Bounds(requests=10, per=86400.0))
    now = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            parent.ledger.close()
            parent.ledger.open(parent.folder)
            granted = sum(isinstance(parent.budget.reserve(now), Reservation) for _ in range(6))
            os._exit(0 if granted == 6 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert sum(isinstance(parent.budget.reserve(now), Reservation) for _ in range(6)) == 4


def test_a_budget_goes_on_after_the_machine_was_started_anew(workers, monkeypatch):
    """The monotonic clock begins at zero then; the wall clock tells how long it took."""
    clock = {"wall": 1e9, "monotonic": 5000.0}
    monkeypatch.setattr(ledger_module.time, "time", lambda: clock["wall"])
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr(ledger_module, "_boot", lambda: 1)
    one = workers(Bounds(requests=1, per=3600.0))
    assert isinstance(one.budget.reserve(5000.0), Reservation)
    monkeypatch.setattr(ledger_module, "_boot", lambda: 2)
    clock.update(wall=1e9 + 600.0, monotonic=10.0)
    two = workers(Bounds(requests=1, per=3600.0))
    assert 3000.0 <= two.budget.reserve(10.0) - 10.0 <= 3100.0
    assert isinstance(two.budget.reserve(3200.0), Reservation)


def test_a_clock_that_was_years_ahead_closes_a_budget_for_one_period_only(workers, monkeypatch):
    wall = [4e9]
    monkeypatch.setattr(ledger_module.time, "time", lambda: wall[0])
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(ledger_module, "_boot", lambda: int(wall[0]))
    one = workers(Bounds(requests=1, per=60.0))
    assert isinstance(one.budget.reserve(0.0), Reservation)
    wall[0] = 1e9
    two = workers(Bounds(requests=1, per=60.0))
    assert 0.0 < two.budget.reserve(0.0) <= 62.0
    assert isinstance(two.budget.reserve(63.0), Reservation)


def test_another_period_counts_what_was_used_under_the_old_one(workers):
    minute, hour = workers(Bounds(requests=3, per=60.0)), workers(Bounds(requests=3, per=3600.0))
    for _ in range(3):
        minute.budget.reserve(0.0)
    assert 3600.0 <= hour.budget.reserve(30.0) <= 3700.0


def test_a_worker_that_stops_with_the_lock_in_its_hands_is_an_answer_and_no_wait(workers):
    one, two = workers(), workers()
    held = one.budget.reserve(0.0, tokens=10)
    fcntl.flock(two.ledger._lock.descriptor, fcntl.LOCK_EX)
    with pytest.raises(Busy):
        one.budget.reserve(5.0)
    one.budget.settle(held, 5.0, tokens=1)  # what was set aside counts as used
    fcntl.flock(two.ledger._lock.descriptor, fcntl.LOCK_UN)
    assert one.budget.used(6.0)["tokens"] == 10
    assert isinstance(one.budget.reserve(6.0, tokens=1), Reservation)


@pytest.mark.parametrize("damage", ["short", "foreign", "empty"])
def test_a_damaged_file_is_made_anew(workers, damage, caplog):
    one = workers()
    path = one.ledger._mapped["quotas"]
    one.ledger.close()
    length = path.stat().st_size
    path.write_bytes({"short": path.read_bytes()[:-8], "foreign": b"x" * length, "empty": b""}[damage])
    assert isinstance(workers().budget.reserve(0.0, tokens=100), Reservation)
    assert "start afresh" in caplog.text
    assert path.stat().st_size == length


def test_without_a_file_budgets_count_in_this_process_and_say_so(tmp_path):
    (tmp_path / "budgets").write_text("a file, no folder")
    ledger = Ledger()
    budget = Budget(Bounds(requests=1), ledger.accounts("quotas", 3, 8, learns=True), "key")
    ledger.open(tmp_path / "budgets")
    assert "this process only" in ledger.trouble
    assert isinstance(budget.reserve(0.0), Reservation)
    assert not isinstance(budget.reserve(0.0), Reservation)
    assert not ledger.used
    ledger.sync()
    ledger.close()


def test_a_file_system_that_can_reserve_nothing_is_written_to(workers, monkeypatch):
    monkeypatch.setattr(ledger_module.os, "posix_fallocate", Mock(side_effect=OSError(95, "not supported")))
    one = workers()
    assert isinstance(one.budget.reserve(0.0, tokens=100), Reservation)
    stored = one.ledger._mapped["quotas"].stat()
    assert stored.st_blocks * 512 >= stored.st_size


def test_a_full_disk_leaves_no_hole_that_would_end_the_process(tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(ledger_module.os, "posix_fallocate", full)
    monkeypatch.setattr(ledger_module, "_fill", full)
    ledger = Ledger()
    budget = Budget(Bounds(requests=1), ledger.accounts("quotas", 3, 8, learns=True), "key")
    ledger.open(tmp_path)
    assert "No space left" in ledger.trouble
    assert isinstance(budget.reserve(0.0), Reservation)
    assert not list(tmp_path.glob("*quotas*"))
    ledger.close()


def test_nothing_is_synced_for_a_call_and_everything_at_once_later(workers, monkeypatch):
    synced = []
    one = workers(Bounds(requests=1e9))
    monkeypatch.setattr(ledger_module, "sync_file", synced.append)
    for second in range(1000):
        one.budget.reserve(float(second))
    assert synced == []
    assert one.ledger.used
    one.ledger.sync()
    assert len(synced) == 1
    one.ledger.sync()
    assert len(synced) == 1
