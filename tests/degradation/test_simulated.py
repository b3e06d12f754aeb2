"""The learned limit in the simulator: what part of the possible it answers in time, scenario by scenario."""

from __future__ import annotations

import attrs
import pytest

CONTENDED = {"contention", "heavy-contention"}
SLICE = ["step", "slow-backend", "heavy-contention", "half-and-half", "long-calls", "few-long-calls", "small"]
EVERY = [
    "overload-2x", "overload-10x", "step", "ramp", "slow-backend", "slow-then-back", "half-the-workers",
    "twice-the-workers", "contention", "heavy-contention", "bimodal", "half-and-half", "exponential", "long-calls",
    "few-long-calls", "small", "large", "runaway",
]  # fmt: skip


def simulate(simulator, name, seed):
    scenario = simulator.scenarios()[name]
    simulation = simulator.Simulation(scenario, seed, allowance=3.0 if scenario.deadline > 5 else 1.0)
    result = simulation.run()
    print(f"{name} seed {seed}: goodput {result.goodput:.3f}, limit {simulation.gate.limit.value:.1f}")
    return simulation, result


def floor(name):
    return 0.90 if name in CONTENDED else 0.95


@pytest.mark.parametrize("name", SLICE)
def test_goodput_stays_high(simulator, name):
    _, result = simulate(simulator, name, seed=0)
    assert result.goodput >= floor(name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", EVERY)
def test_goodput_stays_high_in_every_scenario(simulator, name, seed):
    _, result = simulate(simulator, name, seed)
    assert result.goodput >= floor(name)


def test_every_scenario_is_in_the_campaign(simulator):
    assert set(simulator.scenarios()) == set(EVERY)


@pytest.mark.parametrize("load", [2, 10])
def test_the_first_seconds_of_an_overload_answer_most_of_what_they_could(simulator, load):
    """The service has just started and knows nothing: 10 workers of 50 ms."""
    found = []
    for seed in range(6):
        scenario = attrs.evolve(
            simulator.scenarios()["overload-2x"], arrivals=lambda t: load * 200.0, workers=lambda t: 10, seconds=5.0,
            warm_up=0.0,
        )  # fmt: skip
        found.append(simulator.Simulation(scenario, seed).run().goodput)
    print(f"{load}x: {found}")
    assert sum(found) / len(found) >= 0.95
    assert min(found) >= 0.88


def test_the_critical_few_are_served_at_ten_times_the_capacity(simulator):
    scenario = attrs.evolve(simulator.scenarios()["overload-10x"], seconds=16.0)
    result = simulator.Simulation(scenario, 0).run()
    assert result.critical_good / result.critical_offered >= 0.985
    waits = sorted(result.refusal_waits)
    assert waits[int(len(waits) * 0.99)] <= 0.005


def test_the_limit_does_not_drift_upward_under_lasting_overload(simulator):
    scenario = attrs.evolve(simulator.scenarios()["runaway"], seconds=240.0)
    simulation = simulator.Simulation(scenario, 3)
    simulation.run()
    late = [value for when, value in simulation.result.limits if when > 30.0]
    assert max(late) <= 3 * 15


def test_the_same_seed_gives_the_same_run(simulator):
    scenario = attrs.evolve(simulator.scenarios()["step"], seconds=8.0, warm_up=1.0)
    runs = [simulator.Simulation(scenario, 5).run() for _ in range(2)]
    assert runs[0].good == runs[1].good
    assert runs[0].limits == runs[1].limits
