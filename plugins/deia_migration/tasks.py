"""Queued tasks obey the same split as requests: which worker may take which task.

A task is pinned at its first claim and stays with that version. Only a rollback may move it, and only off a version
that the settings declare compatible; nothing is ever cancelled here.
"""

from __future__ import annotations

from collections.abc import Callable

from deia_migration.settings import MigrationSettings
from deia_migration.traffic import Router


class TaskSplit:
    """The `VersionSplit` service while migration is on. Callable from any thread.

    Versions are named as in the settings; "app" and "" both mean the wrapped app, and a claimer of unknown version
    counts as the stable one.
    """

    def __init__(self, router: Router, settings: Callable[[], MigrationSettings]) -> None:
        self._router = router
        self._settings = settings

    def version_for(self, key: str) -> str:
        """The version that new work with this key goes to."""
        live = self._router.live
        if live is None:
            return self._router.base.label
        return live.candidate.label if self._new(key) else live.stable.label

    def _new(self, key: str) -> bool:
        live = self._router.live
        return live is not None and live.candidate.ready and live.split.new(key, live.weight)

    def may_claim(self, key: str, claimer: str, pinned: str) -> bool:
        """Whether a claimer of version `claimer` may take a task with `key`, pinned to `pinned` or ""."""
        live = self._router.live
        if live is None:
            # One version serves; what is pinned to one that is gone is finished by it.
            return True
        new, stable = live.candidate.label, live.stable.label
        mine = new if claimer == new else stable
        if not pinned:
            return mine == (new if self._new(key) else stable)
        owner = new if pinned == new else stable
        if mine == owner:
            return True
        rolled_back = live.rollout in self._router.latched
        return rolled_back and owner == new and new in self._settings().compatible
