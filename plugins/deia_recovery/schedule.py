"""When something is due. Pure: takes what was done when, and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs


@attrs.frozen
class Every:
    """A task and its interval in seconds."""

    name: tuple[str, ...]
    seconds: float


def due(tasks: Iterable[Every], done: Mapping[tuple[str, ...], float], now: float) -> list[Every]:
    """Tasks never done, or done longer ago than their interval; a time in the future (a clock set back) is due too.

    What holds everything comes first: it makes others unnecessary at the same moment.
    """
    found = [
        task
        for task in tasks
        if (last := done.get(task.name)) is None or now - last >= task.seconds or last - now > task.seconds
    ]
    return sorted(found, key=lambda task: ("all" not in task.name, task.seconds, task.name))
