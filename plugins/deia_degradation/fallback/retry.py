"""Whether another bot may be asked for the same request: rules and the budget behind them, pure.

Nothing with effects is sent twice unless it provably was not sent, and nothing at all once the answer began. The
budget (a part of all requests plus a few per second, as Finagle's RetryBudget and Envoy's retry_budget) keeps retries
from becoming the load that breaks what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import attrs

from deia_hardening.upstream import Outcome

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""RFC 9110 section 9.2.2."""

_IDEMPOTENCY_KEY = b"idempotency-key"
_SECONDS = 10.0
"""How long unused retries are kept, in seconds of the steady rate."""


@attrs.frozen
class RetryPolicy:
    """`attempts`: further ones at most; `ratio` of requests and `per_second` on top are the budget."""

    attempts: int = 2
    ratio: float = 0.2
    per_second: float = 10.0


class RetryBudget:
    """A token bucket that requests fill and retries empty. Thread-safe."""

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self.policy = policy
        self._lock = threading.Lock()
        self._stamp = now
        self._tokens = min(policy.per_second, policy.per_second * _SECONDS)

    def deposit(self) -> None:
        """A request came. Without the lock: an increment that is lost now and then does no harm."""
        self._tokens += self.policy.ratio

    @property
    def rich(self) -> bool:
        """Whether so much is left that repeatable requests may go to suspect bots."""
        return self._tokens >= self.policy.per_second / 2

    def withdraw(self, now: float) -> bool:
        """Take one retry, if there is one."""
        policy = self.policy
        with self._lock:
            tokens = self._tokens + (now - self._stamp) * policy.per_second
            self._stamp = now
            # What is saved up is bounded, so that an outage after a busy day is not met by a storm of retries.
            tokens = min(tokens, max(1.0, policy.per_second * _SECONDS))
            taken = tokens >= 1.0
            self._tokens = tokens - 1.0 if taken else tokens
            return taken


def repeatable(method: str, headers: Iterable[tuple[bytes, bytes]], effects: bool) -> bool:
    """Whether this request may be sent twice: idempotent, or with an `Idempotency-Key`, and without `effects`."""
    if effects:
        return False
    return method in IDEMPOTENT or any(name == _IDEMPOTENCY_KEY and value for name, value in headers)


def may_ask_another(
    outcome: Outcome, *, repeatable: bool, refused: bool, effects: bool, replayable: bool, tried: int, attempts: int,
    remaining: float | None,
) -> bool:  # fmt: skip
    """Whether another bot may be asked after an attempt that ended so.

    `refused`: the bot said 429 or 529, so it did not act. `replayable`: the body can be sent again. `tried`: attempts
    made so far. `remaining`: seconds to the deadline. The budget is asked after this.
    """
    if outcome is Outcome.STARTED or not replayable or tried > attempts:
        return False
    if remaining is not None and remaining <= 0.0:
        return False
    if outcome is Outcome.NOT_SENT:
        return True
    return repeatable or (refused and not effects)
