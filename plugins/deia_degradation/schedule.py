"""Modes by the calendar: weekly windows and single ones, pure.

A window says its mode, days and times of day in a time zone, or a start and an end. What is in force at a wall time,
and until when, is a plain function.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Literal
from zoneinfo import ZoneInfo

import attrs

from deia_hardening.settings import setting

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@attrs.frozen
class ScheduleEntry:
    """One window."""

    start: str = setting(attrs.NOTHING, "When it begins: '02:00', or '2030-01-31T02:00' for a single one.")
    end: str = setting(attrs.NOTHING, "When it ends, in the same form; '01:00' after '23:00' is the next day.")
    mode: Literal["DEGRADED", "MAINTENANCE"] = setting("MAINTENANCE", "The mode in the window.")
    days: tuple[Day, ...] = setting((), "Days of the week it begins on; empty for every day.")
    zone: str = setting("UTC", "Time zone of start and end, as 'Europe/Berlin'.")
    reason: str = setting("", "What people are told.", le=200)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        try:
            ZoneInfo(self.zone)
        except (ValueError, OSError, KeyError):
            yield "zone", f"{self.zone!r} is not a time zone; write e.g. 'Europe/Berlin'"
        forms = []
        for key, text in (("start", self.start), ("end", self.end)):
            try:
                forms.append(isinstance(_parse(text), datetime))
            except ValueError:
                yield key, f"{text!r} is neither a time of day ('02:00') nor a date with time ('2030-01-31T02:00')"
        if len(forms) == 2 and forms[0] != forms[1]:
            yield "end", "has another form than start: give two times of day or two dates with time"
        elif forms == [True, True] and str(self.end) <= str(self.start):
            yield "end", "lies before start"


def _parse(text: str) -> datetime | time_of_day:
    if "T" in text or len(text) > 8:
        return datetime.fromisoformat(text)
    return time_of_day.fromisoformat(text)


def active(entries: Iterable[ScheduleEntry], wall: float) -> tuple[ScheduleEntry, float] | None:
    """The window in force at `wall` (Unix seconds) and its end, MAINTENANCE before DEGRADED; else None."""
    found: tuple[ScheduleEntry, float] | None = None
    for entry in entries:
        end = _end(entry, wall)
        if end is not None and (found is None or entry.mode == "MAINTENANCE"):
            found = (entry, end)
    return found


def next_change(entries: Iterable[ScheduleEntry], wall: float) -> float | None:
    """When the next window begins or ends after `wall`, within eight days; else None."""
    moments = [moment for entry in entries for window in _windows(entry, wall) for moment in window if moment > wall]
    return min(moments, default=None)


def _end(entry: ScheduleEntry, wall: float) -> float | None:
    for start, end in _windows(entry, wall):
        if start <= wall < end:
            return end
    return None


def _windows(entry: ScheduleEntry, wall: float) -> Iterable[tuple[float, float]]:
    zone = ZoneInfo(entry.zone)
    start, end = _parse(entry.start), _parse(entry.end)
    if isinstance(start, datetime) or isinstance(end, datetime):
        assert isinstance(start, datetime)
        assert isinstance(end, datetime)
        yield _stamp(start, zone), _stamp(end, zone)
        return
    today = datetime.fromtimestamp(wall, UTC).astimezone(zone).date()
    for offset in range(-1, 8):
        day = today + timedelta(days=offset)
        if entry.days and _DAYS[day.weekday()] not in entry.days:
            continue
        last = day + timedelta(days=1) if end <= start else day
        yield (
            datetime.combine(day, start, zone).timestamp(),
            datetime.combine(last, end, zone).timestamp(),
        )


def _stamp(value: datetime, zone: ZoneInfo) -> float:
    return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).timestamp()
