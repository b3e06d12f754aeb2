"""Modes by the calendar."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from deia_degradation.schedule import ScheduleEntry, active, next_change

BERLIN = ZoneInfo("Europe/Berlin")


def at(text, zone=BERLIN):
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


NIGHT = ScheduleEntry(start="02:00", end="03:00", days=("sun",), zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2030-01-06T02:00", True),  # a Sunday
        ("2030-01-06T02:59", True),
        ("2030-01-06T03:00", False),
        ("2030-01-06T01:59", False),
        ("2030-01-07T02:30", False),
    ],
)
def test_a_weekly_window(moment, inside):
    found = active([NIGHT], at(moment))
    assert (found is not None) == inside
    if found is not None:
        assert found[1] == at("2030-01-06T03:00")


def test_a_window_over_midnight_belongs_to_the_day_it_begins_on():
    entry = ScheduleEntry(start="23:00", end="01:00", days=("sat",), zone="Europe/Berlin")
    assert active([entry], at("2030-01-06T00:30")) == (entry, at("2030-01-06T01:00"))
    assert active([entry], at("2030-01-07T00:30")) is None


def test_a_single_window():
    entry = ScheduleEntry(start="2030-05-01T10:00", end="2030-05-01T12:00", mode="DEGRADED")
    assert active([entry], at("2030-05-01T11:00", ZoneInfo("UTC"))) is not None
    assert active([entry], at("2030-05-02T11:00", ZoneInfo("UTC"))) is None


def test_maintenance_goes_before_degraded():
    slow = ScheduleEntry(start="00:00", end="06:00", mode="DEGRADED", zone="Europe/Berlin")
    assert active([slow, NIGHT], at("2030-01-06T02:30"))[0] is NIGHT
    assert active([NIGHT, slow], at("2030-01-06T02:30"))[0] is NIGHT


def test_the_next_change_is_known():
    assert next_change([NIGHT], at("2030-01-06T01:00")) == at("2030-01-06T02:00")
    assert next_change([NIGHT], at("2030-01-06T02:30")) == at("2030-01-06T03:00")
    assert next_change([], 0.0) is None


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (ScheduleEntry(start="2:00", end="03:00"), "start"),
        (ScheduleEntry(start="02:00", end="2030-01-01T03:00"), "end"),
        (ScheduleEntry(start="2030-01-01T03:00", end="2030-01-01T02:00"), "end"),
        (ScheduleEntry(start="02:00", end="03:00", zone="Nowhere/Land"), "zone"),
    ],
)
def test_what_is_wrong_is_said(entry, key):
    assert [found for found, _ in entry.__deia_check__()] == [key]
