"""Whether this worker runs what the other workers of its home run.

The first worker that takes up the files says in the store which content it took. A worker that refuses that same
content is behind: it keeps its old settings, and is not ready until it has caught up.
"""

from __future__ import annotations

import logging

from deia_hardening.plugin import Host
from deia_hardening.store import StoreError

logger = logging.getLogger("deia_config")

KEY = "config/target"


class Agreement:
    """One worker's view. On the background loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.behind = ""
        """Why this worker is behind, or ''."""

    async def took(self, content: str) -> None:
        """This worker runs the files with this digest."""
        self.behind = ""
        try:
            target = await self._host.store.get(KEY)
            if target is None or target.value != content.encode():
                await self._host.store.put(KEY, content.encode())
        except StoreError as error:
            logger.warning("the other workers can't be told what is in force: %s", error)

    async def refused(self, content: str, why: str) -> None:
        """This worker refused the files with this digest."""
        try:
            target = await self._host.store.get(KEY)
        except StoreError:
            return
        if target is not None and target.value == content.encode():
            self.behind = f"another worker runs the new settings, which this one refused: {why}"
            logger.error("%s; this worker is not ready until it has caught up", self.behind)
