"""The figures of durable state as metrics: depths and ages of queues, commits, and how old the last proof is."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from deia_hardening.metrics.core import Metrics

if TYPE_CHECKING:
    from deia_recovery.service import DisasterRecovery

_STATES = ("ready", "delayed", "held", "leased", "parked", "dead")


class Measures:
    """Registers the metrics of one home and keeps those of its queues up to date."""

    def __init__(self, recovery: DisasterRecovery, metrics: Metrics) -> None:
        engine = recovery.engine
        metrics.gauge("recovery_commits", "group commits of this process", lambda: float(engine.groups))
        metrics.gauge("recovery_writes", "writes of this process", lambda: float(engine.writes))
        metrics.gauge("recovery_commit_seconds", "about the slowest commit lately", lambda: engine.slow_commit)
        metrics.gauge(
            "recovery_proven_restore_age_seconds",
            "age of the last restore that was proven by a rehearsal; -1 without any",
            recovery.proven_age,
        )
        metrics.gauge("recovery_problems", "what is wrong at the moment", lambda: float(len(recovery.complaints())))
        self._depth = metrics.gauges("recovery_queue_depth", "tasks by queue and state", ("queue", "state"))
        self._oldest = metrics.gauges(
            "recovery_queue_oldest_seconds", "age of the oldest task that is ready", ("queue",)
        )
        self._queues: set[str] = set()
        self._recovery = recovery
        self._position = -1

    def update(self) -> None:
        """Count the tasks, if anything was committed since the last time or tasks wait. Blocks."""
        engine = self._recovery.engine
        position = engine.peek()
        if position == self._position and not self._queues:
            return
        self._position = position
        counts, oldest = engine.read_here(_count)
        now = engine.clock.wall() * 1000
        for queue in self._queues | {queue for queue, _ in counts}:
            for state in _STATES:
                self._depth.child(queue, state).set(counts.get((queue, state), 0))
            since = oldest.get(queue)
            self._oldest.child(queue).set(0.0 if since is None else max(0.0, (now - since) / 1000))
        self._queues = {queue for (queue, state), count in counts.items() if count and state in _STATES}


def _count(connection: sqlite3.Connection) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    counts = connection.execute(
        "SELECT queue, state, count(*) FROM task WHERE finished IS NULL OR state = 'dead' GROUP BY 1, 2"
    )
    oldest = connection.execute("SELECT queue, min(submitted) FROM task WHERE state = 'ready' GROUP BY queue")
    return {(queue, state): count for queue, state, count in counts}, dict(oldest)
