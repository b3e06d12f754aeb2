"""A seeded discrete-event simulator in virtual time: open-loop arrivals, the real gate, a modelled backend.

It has no clock and no loop; a scenario of a minute takes about a second. `best` is what a server with perfect
knowledge would have answered in time of the same requests, so `goodput` is a part of what was possible: where those
that were drawn take longer than the mean by chance, nobody could have answered as many.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from math import log

import attrs

from deia_degradation.admission.gate import Gate
from deia_degradation.admission.limit import LimitPolicy
from deia_degradation.admission.room import Criticality, RoomPolicy, Waiter, WaiterState

Rate = Callable[[float], float]
TICK = 0.05


@attrs.frozen
class Scenario:
    """`arrivals(t)`: requests per second offered. `service(t, rng)`: seconds of work. `workers(t)`: how many the
    backend does at once. `contention`: the kappa of the universal scalability law; with it, all run at once, each
    the slower the more there are. `deadline`: seconds after which an answer is worth nothing."""

    name: str
    arrivals: Rate
    service: Callable[[float, random.Random], float]
    mean_service: Rate
    workers: Callable[[float], int] = lambda t: 10**9
    contention: float = 0.0
    deadline: float = 2.0
    seconds: float = 60.0
    warm_up: float = 10.0
    critical: float = 0.0
    """The part of arrivals that is CRITICAL_PLUS."""

    def capacity(self, t: float) -> float:
        """The best throughput at t, per second."""
        if self.contention:
            best = (1.0 / self.contention) ** 0.5
            n = min(best, 10**6)
            return n / (1.0 + self.contention * n * (n - 1.0)) / self.mean_service(t)
        return self.workers(t) / self.mean_service(t)


@attrs.define
class Result:
    good: int = 0
    late: int = 0
    shed: int = 0
    offered: list[tuple[float, float]] = attrs.Factory(list)
    """Arrivals and capacity per second, at each tick that counts."""
    work: float = 0.0
    expected: float = 0.0
    """The work of what was begun, as it was drawn and as it is on average."""
    limits: list[tuple[float, float]] = attrs.Factory(list)
    goods: list[int] = attrs.Factory(list)
    bests: list[float] = attrs.Factory(list)
    critical_offered: int = 0
    critical_good: int = 0
    critical_latency: list[float] = attrs.Factory(list)
    in_flight_over: int = 0
    refusal_waits: list[float] = attrs.Factory(list)

    @property
    def best(self) -> float:
        luck = self.expected / self.work if self.work else 1.0
        return sum(min(arrivals, capacity * luck) for arrivals, capacity in self.offered) * TICK

    @property
    def goodput(self) -> float:
        return self.good / self.best


class Simulation:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        limit: LimitPolicy = LimitPolicy(),
        room: RoomPolicy = RoomPolicy(),
        allowance: float = 1.0,
    ) -> None:
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.gate = Gate(limit, room)
        self.allowance = allowance
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.result = Result()
        self.backlog: list[_Job] = []
        self.head = 0
        self.busy = 0
        self.running: dict[int, list] = {}
        self.shared_done: list[tuple[float, int, _Job]] = []
        self.progress = 0.0
        self.progress_at = 0.0
        self.version = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what))

    def run(self) -> Result:
        self.at(0.0, self.arrive)
        self.at(TICK, self.tick)
        end = self.scenario.seconds
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            if self.now >= end:
                break
            what()
        return self.result

    # arrivals and the gate

    def arrive(self) -> None:
        rate = self.scenario.arrivals(self.now)
        self.at(self.now - log(1.0 - self.rng.random()) / max(rate, 1e-6), self.arrive)
        if rate <= 0.0:
            return
        job = _Job(self.now)
        job.critical = self.rng.random() < self.scenario.critical
        if job.critical and self.counting:
            self.result.critical_offered += 1
        if self.gate.enter():
            self.begin(job)
            return
        criticality = Criticality.CRITICAL_PLUS if job.critical else Criticality.SHEDDABLE_PLUS
        until = min(self.now + self.allowance, self.now + self.scenario.deadline)
        waiter = Waiter(criticality, self.now, self.allowance, until, lambda: self.woken(waiter, job))
        if not self.gate.wait(waiter, self.now):
            self.shed(job)

    def woken(self, waiter: Waiter, job: _Job) -> None:
        if waiter.state is WaiterState.ADMITTED:
            self.begin(job)
        else:
            self.shed(job)

    @property
    def counting(self) -> bool:
        return self.now >= self.scenario.warm_up

    def shed(self, job: _Job) -> None:
        if self.counting:
            self.result.shed += 1
            self.result.refusal_waits.append(self.now - job.arrived)

    def tick(self) -> None:
        self.gate.sweep(self.now)
        self.result.limits.append((self.now, self.gate.limit.value))
        if self.counting:
            self.result.offered.append((self.scenario.arrivals(self.now), self.scenario.capacity(self.now)))
        second = int(self.now)
        while len(self.result.goods) <= second:
            self.result.goods.append(0)
            self.result.bests.append(min(self.scenario.arrivals(self.now), self.scenario.capacity(self.now)))
        self.at(self.now + TICK, self.tick)

    # the backend

    def begin(self, job: _Job) -> None:
        job.started = self.now
        if self.gate.in_flight > self.gate.limit.limit + 1000:
            self.result.in_flight_over += 1
        work = self.scenario.service(self.now, self.rng)
        if self.counting:
            self.result.work += work
            self.result.expected += self.scenario.mean_service(self.now)
        if self.scenario.contention:
            self.share(job, work)
        elif self.busy < self.scenario.workers(self.now) and self.head >= len(self.backlog):
            self.busy += 1
            self.at(self.now + work, lambda: self.finish(job))
        else:
            job.work = work
            self.backlog.append(job)

    def finish(self, job: _Job) -> None:
        self.busy -= 1
        while self.head < len(self.backlog) and self.busy < self.scenario.workers(self.now):
            following = self.backlog[self.head]
            self.head += 1
            if self.head > 1000:
                del self.backlog[: self.head]
                self.head = 0
            self.busy += 1
            self.at(self.now + following.work, lambda job=following: self.finish(job))
        self.end(job)

    def share(self, job: _Job, work: float) -> None:
        self.advance()
        heapq.heappush(self.shared_done, (self.progress + work, self.count, job))
        self.count += 1
        self.plan()

    def speed(self) -> float:
        n = len(self.shared_done)
        return 1.0 / (1.0 + self.scenario.contention * n * (n - 1.0)) if n else 0.0

    def advance(self) -> None:
        self.progress += (self.now - self.progress_at) * self.speed()
        self.progress_at = self.now

    def plan(self) -> None:
        self.version += 1
        if self.shared_done:
            version = self.version
            due = self.now + max(0.0, (self.shared_done[0][0] - self.progress) / self.speed())
            self.at(due, lambda: self.shared_finish(version))

    def shared_finish(self, version: int) -> None:
        if version != self.version:
            return
        self.advance()
        _, _, job = heapq.heappop(self.shared_done)
        self.plan()
        self.end(job)

    def end(self, job: _Job) -> None:
        total = self.now - job.arrived
        good = total <= self.scenario.deadline
        second = int(self.now)
        while len(self.result.goods) <= second:
            self.result.goods.append(0)
            self.result.bests.append(min(self.scenario.arrivals(self.now), self.scenario.capacity(self.now)))
        if good:
            self.result.goods[second] += 1
        if self.counting:
            if good:
                self.result.good += 1
                if job.critical:
                    self.result.critical_good += 1
                    self.result.critical_latency.append(total)
            else:
                self.result.late += 1
        self.gate.leave(self.now, self.now - job.started, self.scenario.deadline)


class _Job:
    __slots__ = ("arrived", "critical", "started", "work")

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.started = 0.0
        self.work = 0.0
        self.critical = False


def exponential(mean: float) -> Callable[[float, random.Random], float]:
    return lambda t, rng: -log(1.0 - rng.random()) * mean


def lognormal(mean: Callable[[float], float], sigma: float = 0.5) -> Callable[[float, random.Random], float]:
    return lambda t, rng: mean(t) * rng.lognormvariate(-sigma * sigma / 2, sigma)


def scenarios() -> dict[str, Scenario]:
    """The published ones, by name."""

    def flat(value: float) -> Rate:
        return lambda t: value

    steady = lognormal(flat(0.05))
    all_of_them = [
        Scenario("overload-2x", flat(800), steady, flat(0.05), workers=lambda t: 20),
        Scenario("overload-10x", flat(4000), steady, flat(0.05), workers=lambda t: 20, seconds=30.0, critical=0.05),
        Scenario("step", lambda t: 200.0 if t < 25 else 1600.0, steady, flat(0.05), workers=lambda t: 20),
        Scenario("ramp", lambda t: 50.0 + 20.0 * t, steady, flat(0.05), workers=lambda t: 20),
        Scenario(
            "slow-backend",
            flat(800),
            lognormal(lambda t: 0.05 if t < 25 else 0.15),
            lambda t: 0.05 if t < 25 else 0.15,
            workers=lambda t: 20,
        ),
        Scenario(
            "slow-then-back",
            flat(800),
            lognormal(lambda t: 0.15 if 20 <= t < 40 else 0.05),
            lambda t: 0.15 if 20 <= t < 40 else 0.05,
            workers=lambda t: 20,
        ),
        Scenario("half-the-workers", flat(800), steady, flat(0.05), workers=lambda t: 20 if t < 25 else 10),
        Scenario("twice-the-workers", flat(1600), steady, flat(0.05), workers=lambda t: 20 if t < 25 else 40),
        Scenario("contention", flat(1000), lognormal(flat(0.05)), flat(0.05), contention=0.001),
        Scenario("heavy-contention", flat(1000), lognormal(flat(0.05)), flat(0.05), contention=0.01),
        Scenario(
            "bimodal",
            flat(400),
            lambda t, rng: 0.02 if rng.random() < 0.8 else 0.5,
            flat(0.8 * 0.02 + 0.2 * 0.5),
            workers=lambda t: 20,
        ),
        Scenario(
            "half-and-half",
            flat(300),
            lambda t, rng: 0.02 if rng.random() < 0.5 else 0.4,
            flat(0.21),
            workers=lambda t: 20,
        ),
        Scenario("exponential", flat(800), exponential(0.05), flat(0.05), workers=lambda t: 20),
        Scenario(
            "long-calls",
            flat(100),
            lognormal(flat(2.0), 0.4),
            flat(2.0),
            workers=lambda t: 100,
            deadline=10.0,
            seconds=180.0,
            warm_up=40.0,
        ),
        Scenario(
            "few-long-calls",
            flat(3),
            lognormal(flat(10.0), 0.3),
            flat(10.0),
            workers=lambda t: 8,
            deadline=40.0,
            seconds=600.0,
            warm_up=200.0,
        ),
        Scenario("small", flat(100), steady, flat(0.05), workers=lambda t: 2),
        Scenario("large", flat(3000), lognormal(flat(0.1)), flat(0.1), workers=lambda t: 200, seconds=40.0),
        Scenario(
            "runaway", flat(300), lognormal(flat(0.1)), flat(0.1), workers=lambda t: 15, seconds=600.0, deadline=1.0
        ),
    ]
    return {scenario.name: scenario for scenario in all_of_them}
