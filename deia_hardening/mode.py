"""The modes of a service: how much of it is on."""

from __future__ import annotations

import enum


class Mode(enum.StrEnum):
    """How much of the service is on. Degradation moves it; everybody may read it."""

    FULL = "FULL"
    DEGRADED = "DEGRADED"
    MAINTENANCE = "MAINTENANCE"
