"""Slower, never down: modes, admission, bots that stand in for each other, outgoing calls with budgets."""

from deia_degradation.fallback.outgoing import Attempt, NoBotLeft, QuotaUsedUp, TooSlow
from deia_degradation.pool.bot import Bot
from deia_degradation.pool.pool import Pool
from deia_degradation.scaling import ScalingAdvice
from deia_degradation.service import DegradationManager

__all__ = ["Attempt", "Bot", "DegradationManager", "NoBotLeft", "Pool", "QuotaUsedUp", "ScalingAdvice", "TooSlow"]
