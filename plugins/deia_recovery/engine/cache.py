"""Registry values in memory, true or not used.

The cache stands at one position of the change log. A reader compares it with the mapped position first: equal
means that every value held is the committed one. After foreign commits the missed changes are applied, or, when
there are too many, everything is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from deia_recovery.engine.schema import DELETE, ENTRY, Change

MISS: Final = object()
"""The cache does not know this key."""

ABSENT: Final = (None, 0)
"""The cache knows that this key is not there."""

Entry = tuple[bytes | None, int]
"""(encoded value or None, revision)."""

_ENTRY_COST = 160


class Cache:
    """Encoded registry values by (store, key); at most about `limit` bytes, oldest first out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self.entries: dict[tuple[str, str], Entry] = {}
        self.position = -1
        """The position at which every held entry is the committed one; -1 while empty."""

    def fill(self, key: tuple[str, str], entry: Entry, position: int) -> None:
        """Keep what was read at `position`, if the cache stands there."""
        with self._lock:
            if self.position == position:
                self._set(key, entry)

    def advance(self, start: int, end: int, changes: Iterable[Change]) -> None:
        """Apply the changes after position `start` up to `end`; one that stands elsewhere is left alone."""
        with self._lock:
            if self.position not in (start, -1):  # an empty one may begin anywhere
                return
            for kind, table, key, columns in changes:
                if kind == ENTRY:
                    store, name, value, revision, _at = key
                    self._set((store, name), (value, revision))
                elif table == "registry":
                    place = (key[0], key[1])
                    if kind == DELETE:
                        self._set(place, ABSENT)
                    else:
                        self._set(place, (columns["value"], columns["revision"]))
            self.position = end

    def reset(self, position: int) -> None:
        """Drop everything and stand at `position`."""
        with self._lock:
            self.entries.clear()
            self._size = 0
            self.position = position

    def _set(self, key: tuple[str, str], entry: Entry) -> None:
        entries = self.entries
        old = entries.get(key)
        if old is None:
            self._size += len(entry[0] or b"") + _ENTRY_COST
        else:
            self._size += len(entry[0] or b"") - len(old[0] or b"")
        entries[key] = entry
        while self._size > self._limit and entries:
            oldest = next(iter(entries))
            gone = entries.pop(oldest)
            self._size -= len(gone[0] or b"") + _ENTRY_COST

    def forget_threads(self) -> None:
        """Make the lock anew (after a fork)."""
        self._lock = threading.Lock()
        self.entries = {}
        self._size = 0
        self.position = -1
