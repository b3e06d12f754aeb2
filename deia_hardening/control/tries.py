"""Limits failed tries per address. Pure: time comes in, a verdict goes out; memory is bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_ADDRESSES: Final = 4096


class FailedTries:
    """Counts failures in a window per address; the least recently seen address is forgotten first.

    A right token is let in whatever was tried before from its address, so nobody can lock others out; with 256
    random bits in a token, trying is hopeless anyway: this keeps it cheap and visible.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self.total = 0

    def failed(self, address: str, now: float, most: int, window: float) -> float | None:
        """Note a failure at `now` (monotonic seconds). Returns the seconds to wait when there were too many."""
        self.total += 1
        began, count = self._seen.pop(address, (now, 0))
        if now - began >= window:
            began, count = now, 0
        self._seen[address] = (began, count + 1)
        if len(self._seen) > _ADDRESSES:
            self._seen.popitem(last=False)
        return began + window - now if count >= most else None
