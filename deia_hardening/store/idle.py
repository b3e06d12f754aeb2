"""Closes what nobody uses: one thread per process while a connection is open, none when none is.

After a fork the child starts without the thread and without connections.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final, Protocol

_LONGEST_PAUSE: Final = 1.0


class Idle(Protocol):
    """Something open. `close_if_idle` closes it when unused.

    It returns the seconds until to ask again, or None when it is closed.
    """

    def close_if_idle(self) -> float | None: ...


class Reaper:
    """Asks its clients now and then whether they can close. `watch` may be called from any thread."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[Idle, int] = {}
        self._thread: threading.Thread | None = None

    def watch(self, client: Idle) -> bool:
        """Look after `client` until it is closed; False when no thread can be started any more (exit)."""
        with self._lock:
            self._clients[client] = self._clients.get(client, 0) + 1
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="deia-store-idle", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    self._clients.pop(client, None)
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                clients = dict(self._clients)
            pause = _LONGEST_PAUSE
            closed = []
            for client, count in clients.items():
                again = client.close_if_idle()
                if again is None:
                    closed.append((client, count))
                else:
                    pause = min(pause, again)
            with self._lock:
                for client, count in closed:
                    if self._clients.get(client) == count:  # else it was opened again meanwhile
                        del self._clients[client]
                if not self._clients:
                    self._thread = None
                    return
            del clients, closed
            time.sleep(max(0.01, pause))


reaper = Reaper()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reaper.reset)
