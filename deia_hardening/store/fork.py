"""What a fork must not take along: SQLite's tables of locks (sqlite.org/howtocorrupt.html, section 2.6).

Connections are closed before the fork and opened again by whoever needs one; parent and child each get their own.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol


class Forked(Protocol):
    """A store with connections: each with the lock that whoever uses it holds."""

    def connection_locks(self) -> tuple[tuple[threading.Lock, str, float], ...]:
        """(lock, name of the connection, seconds to wait for the lock) of each connection that may be open."""

    def drop_connection(self, name: str) -> None:
        """Close that connection; its lock is held."""

    def forget_connections(self) -> tuple[Any, ...]:
        """In a child: as never opened. Returns what could not be closed in time, to be kept and never used."""


stores: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every `Forked` store."""
_held: list[threading.Lock] = []
_inherited: list[Any] = []


def _before() -> None:
    for store in list(stores):
        for lock, name, timeout in store.connection_locks():
            if lock.acquire(timeout=timeout):
                _held.append(lock)
                store.drop_connection(name)


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    _held.clear()
    for store in list(stores):
        # Closing it here would be as wrong as using it.
        _inherited.extend(store.forget_connections())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
