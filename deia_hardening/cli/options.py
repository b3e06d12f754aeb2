"""What `deia-hardening run` was asked for, as its supervisor and its workers see it.

It travels to the workers through the environment, so that each is a fresh interpreter that imports code as it is now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import attrs

VARIABLE = "DEIA_RUN"
LISTEN_VARIABLE = "DEIA_RUN_LISTEN"
CHANNEL_VARIABLE = "DEIA_RUN_CHANNEL"

GRACE = 25.0
"""Seconds that requests in progress have after a worker was told to end; then they are cancelled."""


@attrs.frozen(kw_only=True)
class RunOptions:
    """What to serve, and how. Paths are absolute; `lame_duck` and `drain` are in seconds."""

    target: str
    config: str
    factory: bool = False
    workers: int = 1
    lame_duck: float = 5.0
    drain: float = 10.0
    start_timeout: float = 60.0
    log_level: str = "info"

    def to_environment(self) -> dict[str, str]:
        """The variable that carries this to a worker."""
        return {VARIABLE: json.dumps(attrs.asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RunOptions:
        """What the supervisor had written there."""
        return cls(**json.loads(environment[VARIABLE]))
