"""Flags in a version process: read from the front's files, and again at each word of the front.

Nothing is proposed, followed or written here. What a version refuses is logged, and it goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from deia_config.follow import compiled, flag_snapshot
from deia_config.service import ConfigManager
from deia_hardening.errors import SettingsError
from deia_hardening.plugin import Host

if TYPE_CHECKING:
    from deia_hardening.upstream.inner import Link

logger = logging.getLogger("deia_config")


class InnerFlags:
    """Keeps a version's flags as the files have them. On the background loop."""

    def __init__(self, host: Host, manager: ConfigManager) -> None:
        self._host = host
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    async def read(self) -> None:
        """Read the files and put them in force. Raises SettingsError."""
        settings = self._manager.settings()
        snapshot = await self._host.blocking(flag_snapshot, settings, self._host.home)
        if snapshot.digest != self._manager.flag_set.digest:
            flags = await self._host.blocking(compiled, snapshot, settings.flags.fractional)
            self._manager.adopt_flags(flags, snapshot, first=True)  # the front has recorded the change

    def listen(self, link: Link) -> None:
        """Hear the front's word; `follow` acts on it."""
        link.on_state(self._hear)

    def _hear(self, state: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._told.set)

    async def follow(self) -> None:
        """Read again whenever the front said something; until cancelled."""
        while True:
            await self._told.wait()
            self._told.clear()
            try:
                await self.read()
            except SettingsError as error:
                logger.error("the front's flags are not in force in this version: %s", error)
