"""`TaskQueue` against a model: two workers, retries, expiry, cancelling, lost leases, crashes and ejected bots.

The model is a list of tasks in the order of their submission and says which task each claim has to give. In the end
everything that is left is worked off: nothing may be stuck behind a conversation.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from deia_hardening.testing import FakeClock
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.generation import create_first
from deia_recovery.engine.options import EngineOptions
from deia_recovery.errors import LeaseLost, StateError
from deia_recovery.stores import steps
from deia_recovery.stores.claimed import ClaimedTask
from deia_recovery.stores.state import State
from deia_recovery.stores.tasks import TaskQueue

LEASE = 30
OVER = ("done", "dead", "cancelled", "expired")


@attrs.define
class Model:
    """A task as it should be."""

    id: str
    number: int
    priority: int
    conversation: str | None
    key: str | None
    at: float
    expires: float | None
    most: int
    state: str
    attempts: int = 0
    until: float = 0.0
    bot: str = ""
    wish: bool = False
    checkpoint: Any = None
    events: int = 0

    @property
    def over(self) -> bool:
        return self.state in OVER


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="deia-tasks-"))
        self.clock = FakeClock()
        generation = create_first(self.folder / "state")
        self.engine = Engine(generation.folder, EngineOptions(reserve=0, idle=60.0), self.clock)
        self.store = State(self.engine)
        self.jobs: TaskQueue[int] = TaskQueue("jobs", int, lease=LEASE, state=self.store)
        self.unread: TaskQueue[str] = TaskQueue("jobs", str, lease=LEASE, state=self.store)
        self.tasks: list[Model] = []
        self.held: list[tuple[ClaimedTask[int], Model]] = []
        self.lost: list[ClaimedTask[int]] = []

    def teardown(self) -> None:
        try:
            self.work_off()
        finally:
            self.engine.close()
            shutil.rmtree(self.folder)

    # -- what the model does --------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.wall()

    def end(self, task: Model, state: str) -> None:
        task.state = state
        following = [one for one in self.tasks if one.conversation == task.conversation and not one.over]
        if task.conversation and following and all(one.state == "held" for one in following):
            following[0].state = "delayed" if following[0].at > self.now else "ready"

    def back(self, task: Model, *, count: bool = True, blame: bool = True) -> None:
        if task.wish:
            self.end(task, "cancelled")
        elif blame and task.attempts >= task.most:
            self.end(task, "dead")
        else:
            task.state = "ready"
            task.attempts -= not count

    def lose(self, given: Any) -> None:
        self.lost += [lease for lease, task in self.held if given(task)]
        self.held = [(lease, task) for lease, task in self.held if not given(task)]

    def sweep(self) -> None:
        for task in self.tasks:
            if task.state == "delayed" and task.at <= self.now:
                task.state = "ready"
        ran_out = [task for task in self.tasks if task.state == "leased" and task.until <= self.now]
        for task in ran_out:
            self.back(task)
        self.lose(lambda task: task in ran_out)
        late = [t for t in self.tasks if t.expires is not None and t.expires <= self.now and t.state != "leased"]
        for task in late:
            if not task.over:
                self.end(task, "expired")

    def next(self) -> Model | None:
        ready = [task for task in self.tasks if task.state == "ready"]
        return min(ready, key=lambda task: (-task.priority, task.number), default=None)

    # -- what is done -----------------------------------------------------------------------------------------------

    @rule(
        priority=st.integers(0, 2),
        delay=st.sampled_from([0, 0, 0, 10, 50]),
        expires=st.sampled_from([None, None, 5, 60]),
        conversation=st.sampled_from([None, "a", "a", "b"]),
        key=st.sampled_from([None, None, "k1", "k2"]),
        most=st.integers(1, 3),
    )
    def submit(
        self, priority: int, delay: int, expires: int | None, conversation: str | None, key: str | None, most: int
    ) -> None:
        number = len(self.tasks)
        found = self.jobs.submit(
            number, priority=priority, delay=delay, expires=expires, conversation=conversation, key=key,
            max_attempts=most,
        ).result(10)  # fmt: skip
        known = next((task for task in self.tasks if key is not None and task.key == key), None)
        if known is not None:
            assert (found.id, found.state, found.new) == (known.id, known.state, False)
            return
        behind = conversation is not None and any(t.conversation == conversation and not t.over for t in self.tasks)
        state = "held" if behind else "delayed" if delay else "ready"
        assert (found.state, found.new) == (state, True)
        until = None if expires is None else self.now + expires
        self.tasks.append(Model(found.id, number, priority, conversation, key, self.now + delay, until, most, state))

    @rule(worker=st.sampled_from(["w1", "w2"]), bot=st.sampled_from(["", "b1", "b2"]))
    def claim(self, worker: str, bot: str) -> None:
        lease = self.jobs.try_claim(worker, bot=bot).result(10)
        self.sweep()
        task = self.next()
        assert (lease and lease.body) == (task and task.number)
        if lease is not None and task is not None:
            task.state, task.until, task.bot = "leased", self.now + LEASE, bot
            task.attempts += 1
            assert (lease.attempt, lease.state, lease.cancelled) == (task.attempts, task.checkpoint, False)
            assert lease.token > max([one.token for one, _ in self.held] + [one.token for one in self.lost], default=0)
            self.held.append((lease, task))

    @rule()
    def claimed_by_who_can_not_read_it(self) -> None:
        assert self.unread.try_claim("w3").result(10) is None
        self.sweep()
        while (task := self.next()) is not None:
            task.state = "parked"

    @precondition(lambda self: self.held)
    @rule(
        pick=st.integers(0, 9),
        how=st.sampled_from(["complete", "fail", "later", "final", "release", "heartbeat", "checkpoint", "emit"]),
    )
    def work(self, pick: int, how: str) -> None:
        lease, task = self.held[pick % len(self.held)]
        if how in ("heartbeat", "checkpoint"):
            going_on = lease.heartbeat() if how == "heartbeat" else lease.checkpoint(len(self.tasks))
            assert going_on.result(10) is not task.wish
            task.until = self.now + LEASE
            task.checkpoint = len(self.tasks) if how == "checkpoint" else task.checkpoint
            return
        if how == "emit":
            task.events += 1
            assert lease.emit("e").result(10) == task.events
            return
        self.lose(lambda one: one is task)
        if how == "complete":
            lease.complete(task.number).result(10)
            self.end(task, "done")
        elif how == "release":
            lease.release().result(10)
            self.back(task, count=False, blame=False)
        else:
            state = lease.fail("no", retry_in=20 if how == "later" else 0, final=how == "final").result(10)
            if how == "final" and not task.wish:
                self.end(task, "dead")
            else:
                self.back(task)
                if how == "later" and task.state == "ready":
                    task.state, task.at = "delayed", self.now + 20
            assert state == task.state

    @precondition(lambda self: self.lost)
    @rule(pick=st.integers(0, 9), how=st.sampled_from(["complete", "fail", "release", "heartbeat", "emit"]))
    def come_too_late(self, pick: int, how: str) -> None:
        lease = self.lost[pick % len(self.lost)]
        call = getattr(lease, how)
        with pytest.raises(LeaseLost):
            (call("x") if how in ("fail", "emit") else call()).result(10)

    @precondition(lambda self: self.tasks)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        task = self.tasks[pick % len(self.tasks)]
        state = self.jobs.cancel(task.id).result(10)
        if task.state == "leased":
            task.wish = True
        elif not task.over:
            self.end(task, "cancelled")
        assert state == task.state

    @precondition(lambda self: self.tasks)
    @rule(pick=st.integers(0, 99))
    def retry(self, pick: int) -> None:
        task = self.tasks[pick % len(self.tasks)]
        if task.state not in ("dead", "cancelled", "expired", "parked"):
            with pytest.raises(StateError):
                self.jobs.retry(task.id).result(10)
            return
        state = self.jobs.retry(task.id).result(10)
        others = [t for t in self.tasks if t is not task and t.conversation == task.conversation and not t.over]
        behind = task.conversation is not None and any(other.state != "held" for other in others)
        task.state = "held" if behind else "ready"
        task.attempts, task.wish, task.expires, task.at = 0, False, None, self.now
        assert state == task.state

    @rule(seconds=st.sampled_from([1, 11, 31, 61]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(blame=st.booleans())
    def crash(self, blame: bool) -> None:
        """Blame: the service died. Else a restore took place."""
        leased = [task for task in self.tasks if task.state == "leased"]
        assert self.store.write(lambda tx: steps.release_all(tx, blame=blame)).result(10) == len(leased)
        for task in leased:
            self.back(task, blame=blame)
        self.lose(lambda task: task in leased)
        self.engine.close()

    @rule(bot=st.sampled_from(["b1", "b2"]))
    def eject(self, bot: str) -> None:
        leased = [task for task in self.tasks if task.state == "leased" and task.bot == bot]
        assert self.store.write(lambda tx: steps.release_bot(tx, bot)).result(10) == len(leased)
        for task in leased:
            self.back(task)
        self.lose(lambda task: task in leased)

    @invariant()
    def every_task_is_as_the_model_says(self) -> None:
        found = {info.id: (info.state, info.attempts, info.events) for info in self.jobs.list().result(10)}
        assert found == {task.id: (task.state, task.attempts, task.events) for task in self.tasks}

    @invariant()
    def a_conversation_runs_one_at_a_time(self) -> None:
        busy = [
            t.conversation for t in self.tasks if t.conversation and t.state in ("ready", "delayed", "leased", "parked")
        ]
        assert len(busy) == len(set(busy))

    def work_off(self) -> None:
        for task in self.tasks:
            if task.state == "parked":
                self.retry(task.number)
        for _ in range(4 * len(self.tasks) + 1):
            self.clock.advance(100)
            self.claim("w", "")
            if self.held:
                self.work(0, "complete")
        assert all(task.over for task in self.tasks), [task for task in self.tasks if not task.over]


def run(examples: int) -> None:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    how = settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=health)
    run_state_machine_as_test(Machine, settings=how)  # type: ignore[no-untyped-call]


def test_a_queue_is_what_the_model_says() -> None:
    run(25)


@pytest.mark.slow
def test_a_queue_is_what_the_model_says_for_long() -> None:
    run(1000)
