"""How often a judge rolls back what is no worse, and how soon what is: beside Flagger's and Argo's documented rules.

    python benchmarks/judge.py [--runs 1000] [--seed 1]
    python benchmarks/judge.py --only-false --start 1000 --runs 1000 --tally judge.json   # one slice of a long campaign

Slices with one `--tally` file add up, and the sum is printed: each run has a seed of its own (seed, world, number).

Each run is one hour of a rollout (1%, 10%, 50%, 90%, a quarter of an hour each) of a version that is exactly as good
as the old one, or worse by a known amount. The rules beside it are those of the projects' own first examples:

- Flagger: success rate of the canary at least 99% in each minute; 5 failed checks roll back
  (docs.flagger.app, "Canary analysis": `interval: 1m, threshold: 5, request-success-rate min: 99`).
- Argo Rollouts: success rate at least 95% in each five minutes; more than 3 failed measurements roll back
  (argo-rollouts.readthedocs.io, "Analysis": `interval: 5m, successCondition: result[0] >= 0.95, failureLimit: 3`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from deia_migration.judge import Decision, Judge, JudgeRules
from deia_migration.watchers import P99_SAMPLES

MINUTES = 60
RATE = 600
USERS = 3000
TAIL = 1.1
"""Exponent of the heavy-tailed world's Pareto latencies: their mean hardly exists."""


@attrs.frozen
class World:
    """What happens in one hour. `bad_users` fail with every request, on either version, 20 times a minute."""

    name: str
    base: float = 0.005
    worse: float = 1.0
    bad_users: int = 0
    outage: tuple[int, int, float] | None = None
    forged: int = 0
    latency: bool = False


WORLDS = (
    World("equal versions"),
    World("heavy tails: 10 users whose every request fails", bad_users=10),
    World("shared outage of 10 minutes, half of all requests", outage=(25, 35, 0.5)),
    World("forged keys: one network, 200 new cookies a minute, all failing", forged=200),
    World("heavy-tailed latency (Pareto 1.1), against old's frozen p99", latency=True),
)


def weight_at(minute: int) -> float:
    return (0.01, 0.1, 0.5, 0.9)[minute * 4 // MINUTES]


def poisson(chooser: random.Random, mean: float) -> int:
    if mean > 60:
        return max(0, round(chooser.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), chooser.random(), 0
    while product > limit:
        product *= chooser.random()
        count += 1
    return count


@attrs.define
class Minute:
    """One minute: requests and failures per version, and who failed where, in order."""

    weight: float
    new: int = 0
    new_failed: int = 0
    failures: list[tuple[int, bool]] = attrs.field(factory=list)
    slow: list[tuple[int, bool]] = attrs.field(factory=list)


def hour(world: World, chooser: random.Random) -> Iterator[Minute]:
    """One hour of traffic. A user's place (its bucket) decides its version, as in the split."""
    places: dict[int, float] = {}
    first = sorted(chooser.paretovariate(TAIL) for _ in range(P99_SAMPLES))
    beyond = first[math.ceil(0.99 * P99_SAMPLES) - 1] ** -TAIL  # what the frozen p99 of 300 answers really is
    bad_places = [chooser.random() for _ in range(world.bad_users)]
    for number in range(MINUTES):
        weight = weight_at(number)
        minute = Minute(weight)
        minute.new = poisson(chooser, RATE * weight)
        chance = world.base
        if world.outage and world.outage[0] <= number < world.outage[1]:
            chance = world.outage[2]
        old_failures = poisson(chooser, RATE * (1 - weight) * chance)
        new_failures = min(minute.new, poisson(chooser, minute.new * min(1.0, chance * world.worse)))
        for new, count in ((False, old_failures), (True, new_failures)):
            for _ in range(count):
                while True:  # a user who has this place
                    user = chooser.randrange(USERS)
                    place = places.setdefault(user, chooser.random())
                    if (place < weight) is new:
                        break
                    if len(places) >= USERS and not any((p < weight) is new for p in places.values()):
                        break
                minute.failures.append((user, place < weight))
        minute.new_failed = new_failures
        for index, place in enumerate(bad_places):
            for _ in range(20):
                minute.failures.append((USERS + index, place < weight))
            if place < weight:
                minute.new += 20
                minute.new_failed += 20
        for _ in range(world.forged):  # each with a cookie of its own: the split sends some to new
            new = chooser.random() < weight
            minute.failures.append((-1, new))  # but the judge sees one network
            minute.new += new
            minute.new_failed += new
        if world.latency:
            for _ in range(poisson(chooser, RATE * beyond)):
                user = chooser.randrange(USERS)
                minute.slow.append((user, places.setdefault(user, chooser.random()) < weight))
        chooser.shuffle(minute.failures)
        yield minute


def ours(minutes: list[Minute]) -> bool:
    judge = Judge(JudgeRules())
    for minute in minutes:
        for user, new in minute.failures:
            changed = judge.record(key=key_of(user), new=new, weight=minute.weight, failed=True)
            if changed and judge.verdict().decision is Decision.ROLL_BACK:
                return True
        for user, new in minute.slow:
            changed = judge.record(key=key_of(user), new=new, weight=minute.weight, slow=True)
            if changed and judge.verdict().decision is Decision.ROLL_BACK:
                return True
    return False


def key_of(user: int) -> int:
    return (user + 2) * 0x9E3779B97F4A7C15 % 2**64


def flagger(minutes: list[Minute]) -> bool:
    failed = sum(1 for minute in minutes if minute.new and 1 - minute.new_failed / minute.new < 0.99)
    return failed >= 5


def argo(minutes: list[Minute]) -> bool:
    failed = 0
    for start in range(0, MINUTES, 5):
        window = minutes[start : start + 5]
        total = sum(minute.new for minute in window)
        if total and 1 - sum(minute.new_failed for minute in window) / total < 0.95:
            failed += 1
    return failed > 3


RULES: tuple[tuple[str, Callable[[list[Minute]], bool]], ...] = (
    ("e-process", ours),
    ("Flagger", flagger),
    ("Argo", argo),
)


def false_rollbacks(runs: int, seed: int, start: int, tally: Path | None) -> None:
    counted: dict[str, list[int]] = json.loads(tally.read_text()) if tally and tally.exists() else {}
    for world in WORLDS:
        counts = counted.setdefault(world.name, [0] * (len(RULES) + 1))
        for run in range(start, start + runs):
            minutes = list(hour(world, random.Random(f"{seed}:{world.name}:{run}")))
            for index, (_, rule) in enumerate(RULES):
                counts[index] += rule(minutes)
        counts[-1] += runs
    if tally:
        tally.write_text(json.dumps(counted))
    print("false rollbacks of a version that is no worse, looked at after every failure")
    print(f"{'':66}" + "".join(f"{name:>12}" for name, _ in RULES) + f"{'runs':>10}")
    for name, counts in counted.items():
        print(f"  {name:64}" + "".join(f"{count / counts[-1]:11.2%} " for count in counts[:-1]) + f"{counts[-1]:>10}")


def speed(runs: int, seed: int) -> None:
    """New users (one request each) until a worse version is rolled back, at weight 10%."""
    print("\nnew users exposed until rollback at weight 10%, one request each (median, 90th percentile)")
    for old, new in ((0.005, 0.05), (0.005, 0.02), (0.02, 0.04), (0.001, 0.5), (0.0, 1.0)):
        found = []
        for run in range(min(runs, 2000)):
            chooser = random.Random(f"{seed}:speed:{run}")
            judge, exposed = Judge(JudgeRules(keys=1 << 20)), 0
            for user in range(400_000):
                to_new = chooser.random() < 0.1
                exposed += to_new
                if chooser.random() < (new if to_new else old):
                    judge.record(key=user, new=to_new, weight=0.1, failed=True)
                    if judge.verdict().decision is Decision.ROLL_BACK:
                        break
            found.append(exposed)
        found.sort()
        print(f"  {old:6.1%} -> {new:6.1%}   {statistics.median(found):8.0f} {found[int(0.9 * len(found))]:8.0f}")


def dead() -> None:
    print("\nfailures of a dead version (only new fails) until rollback")
    for weight in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 0.99):
        judge, needed = Judge(JudgeRules()), 0
        while judge.verdict().decision is not Decision.ROLL_BACK:
            needed += 1
            judge.record(key=needed * 7919, new=True, weight=weight, failed=True)
        print(f"  at weight {weight:4.0%}: {needed}")
    print("  (at high weights hardly anybody is left to compare with: readiness, crash and budget act there)")


def healthy(runs: int, seed: int) -> None:
    print("\nusers (on both versions) until an equal version is certified, weight 10% and 50%")
    for weight in (0.1, 0.5):
        for rate in (0.0, 0.02):
            found = []
            for run in range(20):
                chooser = random.Random(f"{seed}:healthy:{run}")
                judge, user = Judge(JudgeRules(slow_share=0.0)), 0
                while judge.verdict().decision is Decision.HOLD and user < 60_000:
                    for _ in range(100):
                        user += 1
                        new = chooser.random() < weight
                        judge.record(key=user, new=new, weight=weight, failed=chooser.random() < rate)
                found.append(user)
            print(f"  weight {weight:4.0%}, {rate:.0%} failing: median {statistics.median(found):6.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first run")
    parser.add_argument("--tally", type=Path, help="file in which slices of a campaign add up")
    parser.add_argument("--only-false", action="store_true", help="only the false rollbacks")
    arguments = parser.parse_args()
    began = time.perf_counter()
    print(f"seed {arguments.seed}")
    false_rollbacks(arguments.runs, arguments.seed, arguments.start, arguments.tally)
    if arguments.only_false:
        return
    speed(arguments.runs, arguments.seed)
    dead()
    healthy(arguments.runs, arguments.seed)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
