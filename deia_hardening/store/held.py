"""Holding a lease: renewed at a third of its time, lost as soon as its time ran out, whatever the store says.

The holder's own clock decides: a lease counts until its ttl after the last renewal was *asked* for, so a holder
whose store is away stops believing before anybody else can take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from deia_hardening.clock import Clock
from deia_hardening.store.base import Blocking, Grant, LeaseHeld, Leasing, StoreError

_RENEW_AT: Final = 1 / 3
_ASK_AGAIN: Final = 0.25  # of the ttl, between two tries for a lease that is held


class Held:
    """A lease that is held; `lost` turns true once and stays so."""

    def __init__(self, grant: Grant, clock: Clock, until: float) -> None:
        self._grant = grant
        self._clock = clock
        self._until = until
        self._lost = False
        self._process = os.getpid()

    @property
    def name(self) -> str:
        return self._grant.name

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder."""
        return self._grant.token

    @property
    def lost(self) -> bool:
        """Whether the lease is gone: taken, expired, or this is a fork of the holder."""
        if not self._lost and (self._clock.monotonic() >= self._until or os.getpid() != self._process):
            self._lost = True
        return self._lost

    async def wait_lost(self) -> None:
        """Return when the lease is lost. On the background loop."""
        while not self.lost:
            await self._clock.sleep(max(0.001, self._until - self._clock.monotonic()))


@contextlib.asynccontextmanager
async def hold(
    backend: Leasing, blocking: Blocking, clock: Clock, name: str, ttl: float, wait: bool
) -> AsyncIterator[Held]:
    """Take the lease (waiting if asked to), renew it while the block runs, give it back. On the background loop."""
    holder = secrets.token_hex(8)
    while True:
        asked = clock.monotonic()
        grant = await blocking(backend.lease_take, name, ttl, holder)
        if grant is not None:
            break
        if not wait:
            raise LeaseHeld(f"somebody else holds the lease '{name}'")
        await clock.sleep(ttl * _ASK_AGAIN)
    lease = Held(grant, clock, asked + ttl)

    async def renew() -> None:
        while not lease.lost:
            await clock.sleep(ttl * _RENEW_AT)
            began = clock.monotonic()
            try:
                kept = await blocking(backend.lease_renew, grant, ttl)
            except StoreError:
                continue  # time decides
            if not kept:
                lease._lost = True
                return
            lease._until = began + ttl

    task = asyncio.get_running_loop().create_task(renew())
    try:
        yield lease
    finally:
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(StoreError):  # it expires by itself
            await blocking(backend.lease_release, grant)


@contextlib.contextmanager
def hold_in_thread(backend: Leasing, clock: Clock, name: str, ttl: float, wait: float) -> Iterator[Held]:
    """The same for a thread, with a thread that renews; LeaseHeld after `wait` seconds."""
    holder = secrets.token_hex(8)
    give_up = time.monotonic() + wait
    while True:
        asked = clock.monotonic()
        grant = backend.lease_take(name, ttl, holder)
        if grant is not None:
            break
        if time.monotonic() >= give_up:
            raise LeaseHeld(f"somebody else holds the lease '{name}'")
        time.sleep(min(ttl * _ASK_AGAIN, 0.1))
    lease = Held(grant, clock, asked + ttl)
    over = threading.Event()

    def renew() -> None:
        while not lease.lost and not over.wait(ttl * _RENEW_AT):
            began = clock.monotonic()
            with contextlib.suppress(StoreError):
                if not backend.lease_renew(grant, ttl):
                    lease._lost = True
                    return
                lease._until = began + ttl

    thread = threading.Thread(target=renew, name="deia-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(StoreError):
            backend.lease_release(grant)
