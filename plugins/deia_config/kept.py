"""Where run-time overrides are kept: in the home, or in the store where several machines share one (`store: url`).

In the store they are one key, changed by compare-and-set; the home then has a copy, so that a start has them before
the store answers.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from deia_hardening.plugin import Host
from deia_hardening.settings.state import (
    OVERRIDES,
    Overrides,
    decode_overrides,
    encode_overrides,
    read_overrides,
    write_overrides,
)
from deia_hardening.store import StoreError, StoreSettings

KEY = "config/overrides"
NOTHING = (0, 0)
AWAY = (-2, 0)
"""The stamp while the store can't be asked."""
Stamp = tuple[int, int]
"""Tells one state of them from another: the file's inode and time, or (-1, the key's revision)."""


class Kept:
    """The overrides of one app as they are kept."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def shared(self) -> bool:
        """Whether they are in a store that other machines may use."""
        return self._host.settings(StoreSettings).url != "sqlite"

    async def stamp(self) -> Stamp:
        """Changes with every change."""
        if not self.shared():
            return await self._host.blocking(_stamp, self._host.home)
        try:
            entry = await self._host.store.get(KEY)
        except StoreError:
            return AWAY
        return (-1, 0 if entry is None else entry.revision)

    async def read(self) -> Overrides:
        """What is kept; the home's copy while the store is away."""
        if self.shared():
            with contextlib.suppress(StoreError):
                entry = await self._host.store.get(KEY)
                if entry is not None:
                    return decode_overrides(entry.value, f"the store's key {KEY}")
        return await self._host.blocking(read_overrides, self._host.home)

    async def write(self, overrides: Overrides, over: Stamp) -> None:
        """Keep them in place of what had the stamp `over`. Raises OSError, StaleRevision or StoreError."""
        if not self.shared():
            await self._host.blocking(write_overrides, self._host.home, overrides)
            return
        await self._host.store.put(KEY, encode_overrides(overrides), if_revision=over[1] if over[0] < 0 else None)
        with contextlib.suppress(OSError):
            await self._host.blocking(write_overrides, self._host.home, overrides)


def _stamp(home: Path) -> Stamp:
    try:
        found = (home / "state" / OVERRIDES).stat()
    except OSError:
        return NOTHING
    return (found.st_ino, found.st_mtime_ns)
