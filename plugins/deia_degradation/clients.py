"""Quotas per client at the door: the actor where one is known, else the address. Above it: 429.

An IPv6 client is its /64, which is what one gets from a provider: else it would have 2^64 quotas, and could push
everybody else's out of what is kept in mind.
"""

from __future__ import annotations

import functools
import ipaddress
import math

from deia_degradation.pool.budget import Bounds, Budget, Reservation
from deia_degradation.pool.ledger import Accounts, Busy
from deia_hardening.context import SCOPE_KEY
from deia_hardening.peers import Network, client_address, is_trusted, peer_of
from deia_hardening.plugin import Problem, RequestContext, Scope


@functools.lru_cache(4096)
def network(address: str) -> str:
    """The network that counts as one client; what is no IPv6 address stays as it is."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, 64), strict=False))


class ClientQuotas:
    """How much each client has asked for lately. Thread-safe, bounded; a forgotten client starts afresh."""

    def __init__(self, bounds: Bounds, accounts: Accounts, networks: tuple[Network, ...]) -> None:
        self.networks = networks
        self._bounds = bounds
        self._accounts = accounts

    def refusal(self, scope: Scope, context: RequestContext, now: float) -> Problem | None:
        """The refusal of a request whose client has used up its quota; else None, and it is counted."""
        actor = context.actor
        if actor.auth and actor.id:
            key = f"actor:{actor.id}"
        else:
            key = f"address:{network(client_address(scope, self.networks))}"
        bounds = self._bounds
        try:
            found = Budget(bounds, self._accounts, key).reserve(now)
        except Busy:  # what protects the service does not close it
            return None
        if isinstance(found, Reservation):
            return None
        wait = max(1.0, found - now) if math.isfinite(found) else float(bounds.per)
        return Problem(
            429,
            f"More than {bounds.requests:g} requests in {bounds.per:g} s; nothing was done. Try again later.",
            retry_after=wait,
        )

    def trusts(self, scope: Scope) -> bool:
        """Whether the peer is a trusted proxy, whose headers are believed."""
        context = scope.get(SCOPE_KEY)
        return is_trusted(peer_of(scope), self.networks) if context is None else bool(context.trusted)
