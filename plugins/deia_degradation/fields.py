"""Fields of the home's page that several workers change: read, changed and stored again until nobody was quicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from deia_hardening.plugin import Store
from deia_hardening.store import StaleRevision, StoreUnavailable

_TRIES: Final = 8


async def change(store: Store, field: str, new: Callable[[Any], Any]) -> Any:
    """Store `new(value)` as the field's value, which all workers see; the value that stands there now.

    `new` may be called more than once, with None where nothing is stored. Raises StoreError.
    """
    key = f"page/{field}"
    for _ in range(_TRIES):
        entry = await store.get(key)
        before = None if entry is None else msgspec.json.decode(entry.value)
        value = new(before)
        if value == before:
            return value
        try:
            await store.put(key, msgspec.json.encode(value), if_revision=0 if entry is None else entry.revision)
        except StaleRevision:
            continue
        return value
    raise StoreUnavailable(f"'{key}' could not be stored: others kept changing it")
