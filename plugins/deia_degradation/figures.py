"""The figures of the plugin for people and for metrics; reading them costs requests nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from deia_degradation.modes import describe
from deia_degradation.pool.ledger import Busy
from deia_hardening.plugin import Mode

if TYPE_CHECKING:
    from deia_degradation.pool.pool import Pool
    from deia_degradation.service import DegradationManager

_LEVEL = {Mode.FULL: 0, Mode.DEGRADED: 1, Mode.MAINTENANCE: 2}


def measure(manager: DegradationManager) -> None:
    """Show the figures as metrics; they are read when somebody asks, so they cost requests nothing."""
    metrics, gate = manager.host.metrics, manager.gate
    for name, doc, function in (
        ("degradation_mode", "0 FULL, 1 DEGRADED, 2 MAINTENANCE.", lambda: float(_LEVEL[manager.control.mode])),
        ("degradation_limit", "Requests that may be in progress at once.", lambda: float(gate.limit.limit)),
        ("degradation_in_flight", "Requests in progress.", lambda: float(gate.in_flight)),
        (
            "degradation_threads_in_flight",
            "Requests on sync endpoints in progress.",
            lambda: float(sum(one.in_flight for one in manager.threads.all())),
        ),
        (
            "degradation_waiting",
            "Requests that wait for a slot.",
            lambda: float(sum(one.room.size for one in (gate, *manager.threads.all()))),
        ),
        ("degradation_streams", "Event streams, WebSockets and long requests.", lambda: float(gate.streams)),
        ("degradation_shed_total", "Requests refused so far.", lambda: float(manager.shed)),
        ("degradation_baseline_seconds", "What a request takes without a queue.", lambda: gate.limit.baseline),
        (
            "degradation_calls_total",
            "Requests and outgoing calls that pools took.",
            lambda: float(sum(pool.calls for pool in manager.pools.values())),
        ),
        (
            "degradation_attempts_total",
            "Bots asked for them, retries and hedges included.",
            lambda: float(sum(pool.attempts_made for pool in manager.pools.values())),
        ),
    ):
        metrics.gauge(name, doc, function)


def status(manager: DegradationManager) -> dict[str, Any]:
    """Everything an operator wants to see at one look."""
    control, gate = manager.control, manager.gate
    now = manager.host.clock.monotonic()
    limit = gate.limit
    return {
        "mode": control.mode.value,
        "since_seconds": round(now - control.state.since, 3),
        "automatic": control.state.automatic.value,
        "cause": control.state.cause,
        "demand": describe(control.state.demand, now),
        "signals": {
            one.name: {"value": round(one.value, 4), "threshold": one.threshold, "high": one.high}
            for one in control.readings
        },
        "admission": {
            "in_flight": gate.in_flight,
            "limit": limit.limit,
            "baseline_seconds": round(limit.baseline, 6),
            "phase": limit.phase.value,
            "waiting": gate.room.size,
            "streams": gate.streams,
            "entered": gate.entered,
            "waited": gate.counts.waited,
            "shed": gate.counts.shed,
            "left": gate.counts.left,
        },
        "threads": [
            {
                "in_flight": one.in_flight,
                "limit": one.limit.limit,
                "waiting": one.room.size,
                "busy": one.limiter.borrowed_tokens,
                "total": one.limiter.total_tokens,
                "shed": one.counts.shed,
            }
            for one in manager.threads.all()
        ],
        "pools": {
            name: [attrs.asdict(bot) for bot in pool.status(now)] for name, pool in sorted(manager.pools.items())
        },
        "quotas": {name: used for name, pool in sorted(manager.pools.items()) if (used := _usage(pool, now))},
    }


def _usage(pool: Pool, now: float) -> dict[str, dict[str, float]]:
    try:
        return pool.usage(now)
    except Busy:  # another worker has stopped with the accounts in its hands: the rest is worth showing
        return {}
