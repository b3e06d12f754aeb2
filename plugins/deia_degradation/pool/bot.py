"""A bot as people name it, and what the pool knows about it.

A `Bot` is a value: an id, what answers (an upstream's address, an ASGI app, or nothing when the caller brings the
call itself), its weight and tier. Its state (in flight, evidence, ejection) is a `Member` of one pool.
"""

from __future__ import annotations

import enum
from typing import Any

import attrs

from deia_degradation.pool.balance import Load
from deia_degradation.pool.eject import Evidence

_ID_LIMIT = 128


def _check_id(instance: Any, attribute: Any, value: str) -> None:
    if not value or len(value) > _ID_LIMIT or any(ord(c) < 0x21 or ord(c) == 0x7F for c in value):
        raise ValueError(f"a bot's id is 1 to {_ID_LIMIT} printable characters without blanks, not {value!r}")


def _check_weight(instance: Any, attribute: Any, value: float) -> None:
    if not 0.0 < value <= 1000.0:
        raise ValueError(f"a bot's weight is more than 0 and at most 1000, not {value!r}")


@attrs.frozen
class Bot:
    """One bot of a pool.

    Attributes:
        id: how it is called in routes, events and `X-Served-By`.
        upstream: what answers: an address (`http://…`, `unix:…`, `inproc:m:app`, `process:m:app`), an ASGI
            callable, or None for outgoing calls that the caller makes itself (`pool.call`).
        weight: its share relative to its peers, more than 0.
        tier: bots of a higher tier are asked only while no bot of a lower one can serve.
        quota: the quota key that it draws on (several bots may share one); "" for none.
    """

    id: str = attrs.field(validator=_check_id)
    upstream: Any = attrs.field(default=None, repr=False)
    weight: float = attrs.field(default=1.0, validator=_check_weight)
    tier: int = 0
    quota: str = ""


class BotState(enum.StrEnum):
    """Whether a bot is asked, and why not."""

    SERVING = "serving"
    EJECTED = "ejected"
    DRAINED = "drained"
    RESTING = "resting"


class Verdict(enum.Enum):
    """How a call to a bot ended, as the pool judges it."""

    GOOD = "good"
    """It answered (a 4xx is an answer too)."""
    FAILED = "failed"
    """It did what the pool's settings call a failure."""
    NEUTRAL = "neutral"
    """It says nothing about the bot: the client left, the caller was cancelled."""


@attrs.frozen
class BotChange:
    """A bot's state changed; `panic` says that it would have been ejected but is the last one."""

    bot: str
    state: str
    reason: str


@attrs.frozen
class BotStatus:
    """What the pool knows about a bot, for people. Seconds, counts since the start."""

    id: str
    state: str
    reason: str
    tier: int
    weight: float
    in_flight: int
    latency: float
    failure_rate: float
    good: int
    failed: int


class Member:
    """A bot with its state in one pool. Changed under the pool's lock only."""

    __slots__ = (
        "bot", "drained", "ejected_until", "ejections", "evidence", "load", "overdue", "probing", "ramp_from", "reason",
        "resting_until", "target",
    )  # fmt: skip

    def __init__(self, bot: Bot) -> None:
        self.bot = bot
        self.target: Any = None
        """What the layer calls: the opened upstream or the ASGI callable."""
        self.load = Load()
        self.evidence = Evidence()
        self.drained = False
        self.ejected_until: float | None = None
        """Monotonic time from which one probe at a time may be sent; None while not ejected."""
        self.overdue = 0.0
        """Monotonic time from which also a call that can't be repeated may be the probe: no other one came."""
        self.ejections = 0
        """Ejections in a row: the exponent of the back-off."""
        self.probing = False
        self.ramp_from: float | None = None
        """When slow start began, None when it is over."""
        self.resting_until = 0.0
        self.reason = ""

    def state(self, now: float) -> BotState:
        if self.drained:
            return BotState.DRAINED
        if self.ejected_until is not None:
            return BotState.EJECTED
        if self.resting_until > now:
            return BotState.RESTING
        return BotState.SERVING
