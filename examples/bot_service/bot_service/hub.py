"""What happens in this process, told to whoever listens (`/api/events`). A slow listener loses its oldest events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any


class _Listener:
    """One subscription: what waits for it, and whether something does."""

    def __init__(self, backlog: int) -> None:
        self.queue: deque[dict[str, Any]] = deque(maxlen=backlog)
        self.ready = asyncio.Event()


class Hub:
    """Publishes to every open subscription on one loop."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()

    @property
    def count(self) -> int:
        return len(self._listeners)

    def publish(self, kind: str, **fields: Any) -> None:
        for listener in self._listeners:
            listener.queue.append({"event": kind, **fields})
            listener.ready.set()

    async def listen(self, backlog: int) -> AsyncIterator[dict[str, Any]]:
        """Yield events from now on."""
        listener = _Listener(backlog)
        self._listeners.add(listener)
        try:
            while True:
                await listener.ready.wait()
                listener.ready.clear()
                while listener.queue:
                    yield listener.queue.popleft()
        finally:
            self._listeners.discard(listener)


hub = Hub()
