"""Which snapshots stay. Pure: takes what there is and the time, returns what may go.

The newest of each kind of content that is proven is never removed, whatever the numbers say; a wall clock that
jumped suspends pruning, since every age would be wrong.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable

import attrs


@attrs.frozen
class Kept:
    """A snapshot as retention sees it. `what` is the kind of content it holds; `proven`: verified since written."""

    id: str
    taken: float
    what: tuple[str, ...]
    whole: bool
    proven: bool


@attrs.frozen
class Rules:
    """How many stay: the newest `last`, and the newest of each of so many hours, days, weeks, months."""

    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int


def to_remove(snapshots: Iterable[Kept], rules: Rules) -> list[str]:
    """Ids of the snapshots that may go, oldest first. Each kind of content is counted for itself."""
    kinds: dict[tuple[str, ...], list[Kept]] = {}
    for snapshot in snapshots:
        kinds.setdefault(snapshot.what, []).append(snapshot)
    keep: set[str] = set()
    everything: list[Kept] = []
    for group in kinds.values():
        group.sort(key=lambda one: (one.taken, one.id), reverse=True)
        everything.extend(group)
        keep.update(one.id for one in group[: rules.last])
        for count, bucket in (
            (rules.hourly, _hour),
            (rules.daily, _day),
            (rules.weekly, _week),
            (rules.monthly, _month),
        ):
            keep.update(_newest_of_each(group, count, bucket))
        proven = next((one.id for one in group if one.proven), None)
        if proven is not None:
            keep.add(proven)
    whole = sorted((one for one in everything if one.whole), key=lambda one: (one.taken, one.id), reverse=True)
    keep.update(one.id for one in whole[:1])
    keep.update([next((one.id for one in whole if one.proven), "")])
    return [one.id for one in sorted(everything, key=lambda one: (one.taken, one.id)) if one.id not in keep]


def _newest_of_each(group: list[Kept], count: int, bucket: Callable[[float], object]) -> list[str]:
    found: dict[object, str] = {}
    for one in group:  # newest first
        key = bucket(one.taken)
        if key not in found:
            if len(found) >= count:
                break
            found[key] = one.id
    return list(found.values())


def _hour(at: float) -> object:
    return int(at // 3600)


def _day(at: float) -> object:
    return int(at // 86400)


def _week(at: float) -> object:
    return int((at // 86400 + 3) // 7)  # weeks begin on Monday


def _month(at: float) -> object:
    day = dt.datetime.fromtimestamp(at, dt.UTC)
    return day.year, day.month


def clock_jumped(wall_before: float, wall_now: float, monotonic_passed: float, tolerance: float = 300.0) -> bool:
    """Whether the wall clock moved differently from the monotonic one by more than `tolerance` seconds."""
    return abs((wall_now - wall_before) - monotonic_passed) > tolerance
