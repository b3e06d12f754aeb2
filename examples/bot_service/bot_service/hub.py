"""What happens, told to whoever listens (the WebSocket `/api/events`). A slow listener loses its oldest events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any


class Hub:
    """Publishes to every open subscription on one loop."""

    def __init__(self) -> None:
        self._listeners: set[tuple[deque[dict[str, Any]], asyncio.Event]] = set()

    @property
    def count(self) -> int:
        return len(self._listeners)

    def publish(self, kind: str, **fields: Any) -> None:
        for queue, ready in self._listeners:
            queue.append({"event": kind, **fields})
            ready.set()

    async def listen(self, backlog: int) -> AsyncIterator[dict[str, Any]]:
        """Yield events from now on."""
        entry = (deque[dict[str, Any]](maxlen=backlog), asyncio.Event())
        self._listeners.add(entry)
        try:
            while True:
                await entry[1].wait()
                entry[1].clear()
                while entry[0]:
                    yield entry[0].popleft()
        finally:
            self._listeners.discard(entry)


hub = Hub()
