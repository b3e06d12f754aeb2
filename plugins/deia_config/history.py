"""The revisions of this home's settings: what can be shown, compared and rolled back to.

Pure data; kept in `.deia/state/config-history.json` so that it outlives a restart. Values are redacted: a secret
never gets here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

FORMAT = 1
FILE = "config-history.json"


@attrs.frozen
class Entry:
    """One revision that was in force. `number` grows across restarts; `values` are all effective ones, by key."""

    number: int
    digest: str
    at: float
    source: str
    actor: str
    reason: str
    values: Mapping[str, Any] = attrs.field(repr=False)
    overrides: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class History:
    """The last revisions, oldest first."""

    entries: tuple[Entry, ...] = ()

    @property
    def newest(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    def add(self, entry: Entry, most: int) -> History:
        """With one more, and without the oldest where there are more than `most`."""
        return History((*self.entries, entry)[-most:])

    def find(self, revision: str | int | None) -> Entry | None:
        """By number, or by the beginning of a digest (6 digits at least)."""
        if revision is None:
            return self.newest
        text = str(revision)
        for entry in reversed(self.entries):
            if str(entry.number) == text or (len(text) >= 6 and entry.digest.startswith(text)):
                return entry
        return None

    def before(self, entry: Entry) -> Entry | None:
        """The revision that was in force before `entry`."""
        earlier = [each for each in self.entries if each.number < entry.number]
        return earlier[-1] if earlier else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ: (old, new); a side that is missing is None."""
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def flatten(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values by dotted key; a list and an empty map are one value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, inner))
        else:
            flat[inner] = item
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        place = tree
        *path, last = key.split(".")
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = place[part] = {}
            place = inner
        place[last] = value
    return tree


def decode(data: bytes) -> History:
    """From the file's bytes; an empty history for what can't be read."""
    try:
        content = json.loads(data)
        if content["format"] > FORMAT:
            return History()
        return History(tuple(Entry(**entry) for entry in content["entries"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return History()


def encode(history: History) -> bytes:
    """For the file."""
    entries = [attrs.asdict(entry, recurse=False) for entry in history.entries]
    return json.dumps({"format": FORMAT, "entries": entries}).encode() + b"\n"


def path_in(home: Path) -> Path:
    """Where a home keeps it."""
    return home / "state" / FILE
