"""What the app's scaler is told: a suggestion from use of the limits, waiting and the pools, and whether to act."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager


@attrs.frozen
class ScalingAdvice:
    """What the app's scaler is told.

    `suggestion` is "up", "down" or "hold"; `allowed` says whether to act on it now; `cooldown` is how many seconds
    remain since the last time somebody did; `signals` are the figures behind it.
    """

    suggestion: str
    allowed: bool
    cooldown: float
    reason: str
    signals: Mapping[str, float]


def advise(manager: DegradationManager, scaled_at: float) -> ScalingAdvice:
    """What a scaler should do now; `scaled_at` is when one last did (monotonic seconds)."""
    scaling = manager.settings.scaling
    gates = [manager.gate, *manager.threads.all()]
    fullest = max(gates, key=lambda gate: gate.in_flight / max(1, gate.limit.limit))
    use = fullest.in_flight / max(1, fullest.limit.limit)
    waiting = sum(gate.room.size for gate in gates)
    pools = {name: pool.healthy_share(monotonic()) for name, pool in manager.pools.items()}
    signals = {
        "in_flight": float(sum(gate.in_flight for gate in gates)),
        "limit": float(manager.gate.limit.limit),
        "use": use,
        "waiting": float(waiting),
        "streams": float(manager.gate.streams),
        "loop_lag": manager.lag.p99(),
        "threads": manager.lag.busy_threads(),
        **{f"healthy.{name}": share for name, share in pools.items()},
    }
    what = (
        "of the learned limit is in use" if fullest is manager.gate else "of the threads for sync endpoints are in use"
    )
    if waiting:
        suggestion, reason = "up", f"{waiting} requests wait"
    elif use >= scaling.high:
        suggestion, reason = "up", f"{use:.0%} {what}"
    elif use <= scaling.low:
        suggestion, reason = "down", f"{use:.0%} {what}"
    else:
        suggestion, reason = "hold", f"{use:.0%} {what}"
    cooldown = max(0.0, scaled_at + float(scaling.cooldown) - monotonic())
    allowed = manager.scaling_allowed and cooldown == 0.0
    if not manager.scaling_allowed:
        reason = f"{reason}; not in mode {manager.control.mode.value}"
    return ScalingAdvice(suggestion, allowed, cooldown, reason, signals)
