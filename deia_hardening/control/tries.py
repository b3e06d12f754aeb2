"""Limits failed tries per address (64 bits of an IPv6 one). Pure: time in, a verdict out; memory is bounded."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

_ADDRESSES: Final = 4096


def network_of(address: str) -> str:
    """What one somebody has: an IPv4 address, or the 64 bits of an IPv6 network that a single machine gets. Pure."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.packed[:8].hex()
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


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
        address = network_of(address)
        began, count = self._seen.pop(address, (now, 0))
        if now - began >= window:
            began, count = now, 0
        self._seen[address] = (began, count + 1)
        if len(self._seen) > _ADDRESSES:
            self._seen.popitem(last=False)
        return began + window - now if count >= most else None
