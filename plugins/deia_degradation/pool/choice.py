"""Which of the bots that can serve takes a call: two at random and the cheaper one, suspects and newcomers minded.

Of bots with unequal weights the first is drawn by weight and gives way only to one that is clearly cheaper: so their
shares follow the weights while nothing is wrong, and one that is slow, full or failing loses its share all the same.
Pure but for the dice; the pool's lock protects what is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from random import random

import attrs

from deia_degradation.pool.balance import BalancePolicy
from deia_degradation.pool.bot import BotState, Member
from deia_degradation.pool.eject import EjectPolicy

_SUSPECT = 0.1
"""Average of recent failures from which on a bot is taken only when every other is as bad."""


@attrs.frozen
class PoolPolicy:
    """How a pool behaves; times are seconds."""

    balance: BalancePolicy = attrs.field(factory=BalancePolicy)
    eject: EjectPolicy = attrs.field(factory=EjectPolicy)
    backoff_min: float = 1.0
    """How long a bot is left alone after its first ejection; doubled with each one in a row."""
    backoff_max: float = 60.0
    slow_start: float = 10.0
    """How long a bot that came back takes to get its full share."""
    slow_start_share: float = 0.1
    """The share it begins with."""


_CLEARLY = 2.0
"""How many times as dear one drawn by its weight may be: latencies of bots that are alike differ by less."""


def wheel_of(members: Iterable[Member]) -> tuple[float, ...] | None:
    """What unequal weights are drawn by: their sums so far. None where all weigh the same."""
    weights = [member.bot.weight for member in members]
    return tuple(accumulate(weights)) if len(set(weights)) > 1 else None


def of_two(
    serving: tuple[Member, ...], now: float, policy: PoolPolicy, probe: bool, wheel: tuple[float, ...] | None = None
) -> Member:
    """One of at least two members. `probe`: the call can be repeated elsewhere. `wheel`: `wheel_of(serving)`."""
    count = len(serving)
    first = serving[int(random() * count) if wheel is None else bisect_right(wheel, random() * wheel[-1], hi=count - 1)]
    second = serving[int(random() * (count - 1))]
    if second is first:
        second = serving[count - 1]
    if first.ramp_from is not None and _held_back(first.ramp_from, now, policy):
        return second
    if second.ramp_from is not None and _held_back(second.ramp_from, now, policy):
        return first
    if probe and (first.evidence.failed or second.evidence.failed):
        # What can be repeated elsewhere goes on to a suspect, so that it is found guilty or innocent soon, and to its
        # peers, whose answers are the measure; everything else avoids it.
        return first
    balance = policy.balance
    load, other_load = first.load, second.load
    if wheel is None:
        cost = load.cost(now, balance, other_load.latency)
        other_cost = other_load.cost(now, balance, load.latency)
    else:
        mean = wheel[-1] / count
        cost = load.cost(now, balance, other_load.latency, first.bot.weight / mean)
        other_cost = other_load.cost(now, balance, load.latency, second.bot.weight / mean) * _CLEARLY
    winner = first if cost <= other_cost else second
    if winner.load.failing > _SUSPECT and count > 2:  # two bad ones were drawn: look at everybody
        return min(serving, key=lambda m: m.load.cost(now, balance, 0.0, m.bot.weight))
    return winner


def _held_back(ramp_from: float, now: float, policy: PoolPolicy) -> bool:
    """Whether a bot that came back leaves this call to the other one."""
    return random() > max((now - ramp_from) / policy.slow_start, policy.slow_start_share)


def of_another_tier(
    members: Iterable[Member], exclude: Sequence[Member], now: float, policy: PoolPolicy
) -> Member | None:
    """The cheapest of the lowest tier that is left when those that serve have all been tried."""
    left = [one for one in members if one not in exclude and one.state(now) is BotState.SERVING]
    if not left:
        return None
    tier = min(one.bot.tier for one in left)
    return min((one for one in left if one.bot.tier == tier), key=lambda m: m.load.cost(now, policy.balance, 0.0))
