"""The gate: never more than the limit, every slot given back, whoever comes, waits, leaves or is cancelled."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deia_degradation.admission.gate import Gate
from deia_degradation.admission.limit import LimitPolicy
from deia_degradation.admission.room import Criticality, RoomPolicy, Waiter, WaiterState
from deia_degradation.admission.threads import ThreadGate

FIXED = LimitPolicy(initial=3, minimum=3, maximum=3)


class Interleaving(RuleBasedStateMachine):
    """Any order of coming, going, leaving the queue and time passing."""

    def __init__(self):
        super().__init__()
        self.gate = Gate(FIXED, RoomPolicy(places=5, cold=5))
        self.now = 100.0
        self.inside = 0
        self.waiters = []
        self.woken = 0

    @rule(criticality=st.sampled_from(list(Criticality)), allowance=st.floats(0.01, 5.0))
    def come(self, criticality, allowance):
        if self.gate.enter():
            self.inside += 1
            return
        waiter = Waiter(criticality, self.now, allowance, self.now + allowance, lambda: None)
        if self.gate.wait(waiter, self.now):
            self.waiters.append(waiter)

    @rule()
    def go(self):
        self._collect()
        if self.inside:
            self.inside -= 1
            self.gate.leave(self.now, 0.01)
            self._collect()

    @rule(index=st.integers(0, 10))
    def leave_the_queue(self, index):
        if self.waiters:
            self.gate.abandon(self.waiters.pop(index % len(self.waiters)), self.now)

    @rule(seconds=st.floats(0.0, 2.0))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.gate.sweep(self.now)

    def _collect(self):
        for waiter in [one for one in self.waiters if one.state is not WaiterState.WAITING]:
            self.waiters.remove(waiter)
            self.inside += waiter.state is WaiterState.ADMITTED

    @invariant()
    def never_more_than_the_limit(self):
        assert 0 <= self.gate.in_flight <= self.gate.limit.limit
        held = self.inside + sum(one.state is WaiterState.ADMITTED for one in self.waiters)
        assert self.gate.in_flight == held
        assert self.gate.room.size == sum(one.state is WaiterState.WAITING for one in self.waiters)
        assert self.gate.room.size <= 5

    def teardown(self):
        for waiter in list(self.waiters):
            self.gate.abandon(waiter, self.now)
            self.waiters.remove(waiter)
        while self.inside:
            self.inside -= 1
            self.gate.leave(self.now, None)
        assert self.gate.in_flight == 0
        assert self.gate.room.size == 0


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Limiter:
    """Stands in for anyio's: what the app uses of its threads, and how many there are."""

    total_tokens = 3
    borrowed_tokens = 0


class ThreadInterleaving(Interleaving):
    """The same for synchronous endpoints, while the app takes threads for itself and changes their number."""

    def __init__(self):
        super().__init__()
        self.limiter = Limiter()
        limit = LimitPolicy(initial=3, minimum=1, maximum=10)
        self.gate = ThreadGate(self.limiter, Gate(), limit, RoomPolicy(places=5, cold=5))
        self.most = 3

    @rule(busy=st.integers(0, 3))
    def the_app_uses_threads(self, busy):
        self.limiter.borrowed_tokens = busy

    @rule(total=st.integers(1, 5))
    def threads_change(self, total):
        self.limiter.total_tokens = total
        self.most = max(total, self.gate.in_flight)

    @invariant()
    def never_more_than_the_limit(self):
        assert 0 <= self.gate.in_flight <= self.most
        held = self.inside + sum(one.state is WaiterState.ADMITTED for one in self.waiters)
        assert self.gate.in_flight == held


TestThreadInterleaving = ThreadInterleaving.TestCase
TestThreadInterleaving.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def waiter(criticality, now, allowance=1.0, woken=None):
    made = Waiter(criticality, now, allowance, now + allowance, lambda: None if woken is None else woken.append(made))
    return made


def full_gate(**room):
    gate = Gate(LimitPolicy(initial=1, minimum=1, maximum=1), RoomPolicy(**room))
    assert gate.enter()
    return gate


def test_the_most_critical_goes_first():
    gate, woken = full_gate(reserve=0.0), []
    for criticality in (3, 1, 2, 0):
        assert gate.wait(waiter(criticality, 0.0, woken=woken), 0.0)
    for _ in range(4):
        gate.leave(0.1, None)
    assert [one.criticality for one in woken] == [0, 1, 2, 3]


def test_the_lowest_gets_its_reserve():
    gate, woken = full_gate(reserve=0.05, cold=1000), []
    for _ in range(200):
        gate.wait(waiter(Criticality.CRITICAL, 0.0, 100.0, woken), 0.0)
        gate.wait(waiter(Criticality.SHEDDABLE, 0.0, 100.0, woken), 0.0)
    for _ in range(100):
        gate.leave(0.1, None)
    assert sum(one.criticality == Criticality.SHEDDABLE for one in woken) == 5


def test_first_in_first_out_until_the_oldest_has_waited_half_its_allowance_then_the_newest_first():
    gate, woken = full_gate(), []
    for index in range(6):
        gate.wait(waiter(2, index * 0.1, woken=woken), index * 0.1)
    for now in (0.2, 0.4, 0.75):
        gate.leave(now, None)
    assert [round(one.arrived, 1) for one in woken] == [0.0, 0.1, 0.5]


def test_a_full_room_displaces_the_newest_of_the_lowest():
    gate, woken = full_gate(places=3, cold=3), []
    lows = [waiter(3, 0.0, 100.0, woken), waiter(3, 0.0, 100.0, woken)]
    middle = waiter(2, 0.0, 100.0, woken)
    for one in (*lows, middle):
        assert gate.wait(one, 0.0)
    gate.room._known = True
    gate.room._rates = [100.0] * 4
    high = waiter(0, 0.0, 100.0, woken)
    assert gate.wait(high, 0.0)
    assert woken == [lows[1]]
    assert lows[1].state is WaiterState.REFUSED
    assert not gate.wait(waiter(3, 0.0, 100.0), 0.0), "nobody is lower than the lowest"


def test_what_can_no_longer_finish_in_time_is_not_started():
    gate, woken = full_gate(), []
    late, early = waiter(1, 0.0, 0.5, woken), waiter(2, 0.0, 5.0, woken)
    gate.wait(late, 0.0)
    gate.wait(early, 0.0)
    gate.leave(1.0, None)
    assert (late.state, early.state) == (WaiterState.REFUSED, WaiterState.ADMITTED)
    assert gate.in_flight == 1
    assert not gate.wait(waiter(2, 1.0, 0.0), 1.0), "no time at all is refused at once"


def test_the_sweep_tells_those_whose_time_is_over():
    gate, woken = full_gate(), []
    gate.wait(waiter(2, 0.0, 0.5, woken), 0.0)
    assert gate.sweep(0.4) == 1
    assert gate.sweep(0.6) == 0
    assert [one.state for one in woken] == [WaiterState.REFUSED]
    assert gate.in_flight == 1


def test_who_would_wait_too_long_is_refused_at_the_door():
    gate = full_gate()
    gate.room._known = True
    gate.room._rates = [0.0, 0.0, 10.0, 0.0]
    accepted = sum(gate.wait(waiter(2, 0.0), 0.0) for _ in range(50))
    assert accepted == 3


def test_streams_have_slots_of_their_own():
    gate = Gate(FIXED, streams=2)
    assert gate.enter_stream()
    assert gate.enter_stream()
    assert not gate.enter_stream()
    assert gate.in_flight == 0
    gate.leave_stream()
    assert gate.enter_stream()


def test_the_smallest_wait_tells_a_standing_queue_from_a_burst():
    gate = full_gate()
    for now in (0.0, 0.1):
        gate.wait(waiter(2, now), now)
    gate.leave(0.2, None)
    gate.leave(0.4, None)
    assert gate.read_smallest_wait() == pytest.approx(0.2)
    assert gate.read_smallest_wait() == 0.0


def test_a_cut_limit_is_kept_to_as_soon_as_enough_have_left():
    gate = Gate(LimitPolicy(initial=4, minimum=1, maximum=4))
    assert all(gate.enter() for _ in range(4))
    gate.adopt(LimitPolicy(initial=2, minimum=1, maximum=2), RoomPolicy(), 10)
    assert gate.in_flight == 4
    for inside in (3, 2):
        assert not gate.enter()
        gate.leave(0.0, None)
        assert gate.in_flight == inside
    assert not gate.enter()
    gate.leave(0.0, None)
    assert gate.enter()
    assert gate.in_flight == 2
    gate.adopt(LimitPolicy(initial=4, minimum=3, maximum=4), RoomPolicy(), 10)
    assert gate.enter()
    assert not gate.enter()


def test_who_waits_comes_in_when_the_limit_is_raised():
    gate, woken = full_gate(), []
    gate.wait(waiter(2, 0.0, woken=woken), 0.0)
    gate.adopt(LimitPolicy(initial=2, minimum=2, maximum=2), RoomPolicy(), 10)
    assert gate.sweep(0.1) == 0
    assert [one.state for one in woken] == [WaiterState.ADMITTED]
    assert gate.in_flight == 2


class Slipping(list):
    """Free slots of which one is given back by another thread just after `enter` or `wait` has seen none."""

    left = 1

    def pop(self):
        if not self and self.left:
            self.left -= 1
            thread = threading.Thread(target=self.append, args=(None,))  # `leave`, before it looks for who waits
            thread.start()
            thread.join()
            raise IndexError
        return super().pop()


def test_a_slot_that_comes_free_as_somebody_begins_to_wait_is_not_lost():
    gate, woken = full_gate(), []
    gate._free = Slipping()
    gate._pop = gate._free.pop
    one = waiter(2, 0.0, woken=woken)
    assert gate.wait(one, 0.0)
    assert woken == [one]
    assert one.state is WaiterState.ADMITTED


def test_threads_never_overrun_it():
    gate = Gate(FIXED)
    most, inside, lock = [0], [0], threading.Lock()

    def work(seed):
        rng = random.Random(seed)
        for _ in range(400):
            done = threading.Event()
            if not gate.enter():
                one = Waiter(rng.randrange(4), 0.0, 1e9, 1e9, done.set)
                if not gate.wait(one, 0.0):
                    continue
                if rng.random() < 0.3:
                    gate.abandon(one, 0.0)
                    continue
                done.wait(10)
                if one.state is not WaiterState.ADMITTED:
                    continue
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1
            gate.leave(0.0, None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 3
    assert gate.in_flight == 0
    assert gate.room.size == 0
