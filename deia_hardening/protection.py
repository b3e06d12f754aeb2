"""`protect(name, dump=…, load=…)`: name an object's state, and recovery keeps it.

Naming is all that happens here: with recovery off nothing is called. What changed since the last scheduled dump is
lost with a crash; use recovery's Registry where no write may be lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs


@attrs.frozen
class Protected:
    """A named piece of state with how to write it to bytes and how to take it back."""

    name: str
    dump: Callable[[], bytes]
    load: Callable[[bytes], None]


_lock = threading.Lock()
_protected: dict[str, Protected] = {}


def protect(name: str, *, dump: Callable[[], bytes], load: Callable[[bytes], None]) -> Protected:
    """Have recovery keep what `dump()` returns, and give it back to `load(data)` before the app's lifespan starts.

    `name` is 1 to 64 characters of `a-z`, `0-9`, `-` and `_`. `dump` may run on any thread, `load` runs once at start.
    Naming the same thing again replaces it (a module reloaded). Raises ValueError for another name.
    """
    if not (1 <= len(name) <= 64 and name.isascii() and name.replace("-", "a").replace("_", "a").isalnum()):
        raise ValueError(f"protect(): {name!r} must be 1 to 64 characters of a-z, 0-9, '-' and '_'")
    protected = Protected(name, dump, load)
    with _lock:
        _protected[name] = protected
    return protected


def protected() -> Mapping[str, Protected]:
    """What was named so far in this process."""
    with _lock:
        return MappingProxyType(dict(_protected))
