"""What the signals are read from, and what counts as high."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from deia_degradation.settings import SignalsSettings
from deia_degradation.signals import LoopLag, Machine, MachineReader, Observed, readings
from deia_hardening.settings import Ratio

SETTINGS = SignalsSettings()


def named(observed, settings=SETTINGS):
    return {one.name: one for one in readings(observed, settings)}


def test_nothing_happening_is_calm():
    assert all(one.calm and not one.high for one in named(Observed()).values())


@pytest.mark.parametrize(
    ("observed", "name"),
    [
        (Observed(arrived=100, shed=5), "shed ratio"),
        (Observed(wait=0.4), "smallest wait"),
        (Observed(bots_gone=0.5), "bots gone"),
        (Observed(loop_lag=0.2), "loop lag p99"),
        (Observed(threads=1.0), "busy threads"),
        (Observed(machine=Machine(memory=0.95)), "memory"),
        (Observed(machine=Machine(disk=0.98)), "disk"),
        (Observed(trouble=1), "store and journals"),
    ],
)
def test_each_signal_is_high_at_its_threshold(observed, name):
    found = named(observed)
    assert found[name].high
    assert all(not one.high for other, one in found.items() if other != name)


def test_memory_and_disk_are_calm_just_below():
    assert named(Observed(machine=Machine(memory=0.89, disk=0.96)))["memory"].calm
    assert not named(Observed(machine=Machine(memory=0.93)))["memory"].calm


def test_a_signal_of_zero_is_off_and_an_unknown_figure_is_left_out():
    assert "memory" not in named(Observed(machine=Machine()))
    settings = attrs.evolve(SETTINGS, shed=Ratio(0), store=False)
    assert {"shed ratio", "store and journals"} & set(named(Observed(arrived=1, shed=1), settings)) == set()


def test_only_bots_gone_acts_at_once():
    assert [one.name for one in readings(Observed(), SETTINGS) if one.at_once] == ["bots gone"]


def test_the_machine_is_read(tmp_path: Path):
    reader = MachineReader(tmp_path / "not" / "there")
    reader.read()
    machine = reader.read()
    assert machine.disk is not None
    assert 0.0 <= machine.disk <= 1.0
    if machine.memory is not None:
        assert 0.0 < machine.memory < 1.0
    assert machine.cpu is not None
    assert machine.cpu >= 0.0


async def test_a_loop_that_is_late_is_noticed_and_a_closed_one_forgotten():
    now = [100.0]
    lag = LoopLag(lambda: now[0])
    lag.register()
    assert lag.p99() == 0.0
    lag.probe()
    now[0] += 0.7  # the loop does not come round
    assert lag.p99() == pytest.approx(0.7)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lag.p99() == pytest.approx(0.7)
    lag.forget()
    lag.probe()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lag.p99() == 0.0
    assert lag.busy_threads() == 0.0


def test_a_closed_loop_is_forgotten():
    lag = LoopLag(lambda: 0.0)

    async def main():
        lag.register()

    asyncio.run(main())
    lag.probe()
    assert lag.p99() == 0.0
