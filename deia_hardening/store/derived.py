"""What every backend makes of its own few calls: single writes, and leases in a thread. And that nothing tells it of
changes, where it does not say otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deia_hardening.clock import Clock
from deia_hardening.store.base import Blocking, Grant, Revisions, SyncLease, Write
from deia_hardening.store.held import hold_in_thread


class Derived(ABC):
    """Base of the backends."""

    _clock: Clock

    @abstractmethod
    def apply(self, writes: Sequence[Write]) -> Revisions:
        """All writes in one commit, or none. Returns each revision; 0 for the deletion of what was not there."""

    @abstractmethod
    def lease_take(self, name: str, ttl: float, holder: str) -> Grant | None:
        """Take the lease, or None when somebody holds it. `ttl` in seconds."""

    @abstractmethod
    def lease_renew(self, grant: Grant, ttl: float) -> bool:
        """Extend a lease; False when it was lost."""

    @abstractmethod
    def lease_release(self, grant: Grant) -> None:
        """Give a lease back; harmless when it was lost."""

    def put(self, key: str, value: bytes, *, if_revision: int | None = None) -> int:
        """Write durably; returns the new revision. Raises StaleRevision, ValueError, StoreError."""
        return self.apply([Write(key, value, if_revision)])[0]

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete durably; whether the key was there. Raises StaleRevision, StoreError."""
        return self.apply([Write(key, None, if_revision)])[0] > 0

    @contextmanager
    def lease(self, name: str, ttl: float, *, wait: float = 0.0) -> Iterator[SyncLease]:
        """Hold a lease in this thread for as long as the block runs; LeaseHeld after `wait` seconds without it."""
        with hold_in_thread(self, self._clock, name, ttl, wait) as lease:
            yield lease

    def heard(self) -> int:
        return 0

    async def listen(self, blocking: Blocking) -> None:
        """Returns at once: looking at `stamp` is what there is."""
        return
