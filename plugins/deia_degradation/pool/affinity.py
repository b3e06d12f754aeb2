"""Keeping a session on one bot: rendezvous hashing, so that a bot that leaves moves only its own keys."""

from __future__ import annotations

from deia_degradation.pool.bot import Member
from deia_hardening.sharding import bucket


def sticky(serving: tuple[Member, ...], key: str) -> Member:
    """Rendezvous hashing with weights (Thaler and Ravishankar, 1998): a bot that leaves moves only its own keys."""
    return max(serving, key=lambda member: _score(bucket(key, member.bot.id), member.bot.weight))


def _score(point: float, weight: float) -> float:
    return float(max(point, 1e-12) ** (1.0 / weight))
