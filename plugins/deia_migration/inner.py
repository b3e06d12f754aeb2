"""The split of tasks in a version process: read from the home's page, where the front keeps the rollout's weight.

A version process routes nothing and drives nothing; it only must not take tasks that belong to another version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deia_migration.book import FIELD
from deia_migration.settings import MigrationSettings
from deia_migration.split import Split


class PageSplit:
    """The `VersionSplit` of a version process. Any thread; a look at the page costs well under a microsecond."""

    def __init__(self, state: Callable[[], Any], settings: Callable[[], MigrationSettings]) -> None:
        self._state = state
        self._settings = settings
        self._seen: Any = None
        self._rollout: tuple[Split, float, str, bool] | None = None

    def version_for(self, key: str) -> str:
        """The version that new work with this key goes to; "" for the stable one."""
        rollout = self._now()
        if rollout is None:
            return ""
        split, weight, candidate, _ = rollout
        return candidate if split.new(key, weight) else ""

    def may_claim(self, key: str, claimer: str, pinned: str) -> bool:
        """Whether a claimer of version `claimer` may take a task with `key`, pinned to `pinned` or ""."""
        rollout = self._now()
        if rollout is None:
            return True
        split, weight, candidate, latched = rollout
        mine = claimer == candidate
        if not pinned:
            return mine == split.new(key, weight)
        owner = pinned == candidate
        if mine == owner:
            return True
        return latched and owner and candidate in self._settings().compatible

    def _now(self) -> tuple[Split, float, str, bool] | None:
        state = self._state()
        if state is self._seen:
            return self._rollout
        field = state.get(FIELD) if state is not None else None
        rollout = None
        if isinstance(field, Mapping) and field.get("rollout") and not field.get("over"):
            latched = bool(field.get("latched"))
            weight = 0.0 if latched else float(field.get("weight", 0.0))
            rollout = (Split(str(field["rollout"])), weight, str(field.get("version", "")), latched)
        self._rollout = rollout
        self._seen = state
        return rollout
