"""What plugins offer each other and the app: objects found by their type.

A plugin provides its manager; the core provides safe defaults for what plugins need from each other
(`TaskSink`, `VersionSplit`, `FeatureSource`), so each works alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import attrs

T = TypeVar("T")


class Services:
    """Typed look-up, written by plugins while they start, read by everybody. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: dict[type, tuple[Any, ...]] = {}
        self.table: dict[type, Any] = {}
        """The newest provider of each type."""
        self.source: FeatureSource | None = None
        self.masks: tuple[FeatureMask, ...] = ()
        """Where flags come from, and what turns them off: looked at by each that is read."""
        self._revisions: weakref.WeakSet[Any] = weakref.WeakSet()

    def provide(self, kind: type[T], service: T) -> Callable[[], None]:
        """Offer `service` as `kind`. The newest provider answers `get`; all of them are in `all`.

        Returns a function that withdraws it (calling it twice is harmless).
        """
        with self._lock:
            self._table[kind] = (*self._table.get(kind, ()), service)
            self._show(kind, service)

        def withdraw() -> None:
            with self._lock:
                left = tuple(s for s in self._table.get(kind, ()) if s is not service)
                if left:
                    self._table[kind] = left
                    self._show(kind, left[-1])
                else:
                    self._table.pop(kind, None)
                    self._hide(kind)

        return withdraw

    def show_in(self, revision: Any) -> None:
        """Have `revision.found` hold its settings objects and the services, from now on: `current(T)` looks there."""
        with self._lock:
            self._revisions.add(revision)
            revision.found.update(self.table)
            revision.found.update(revision.settings)

    def _show(self, kind: type, service: Any) -> None:
        self.table[kind] = service
        self._flags()
        for revision in self._revisions:
            if kind not in revision.settings:
                revision.found[kind] = service

    def _hide(self, kind: type) -> None:
        self.table.pop(kind, None)
        self._flags()
        for revision in self._revisions:
            if kind not in revision.settings:
                revision.found.pop(kind, None)

    def _flags(self) -> None:
        self.source = self.table.get(FeatureSource)
        self.masks = self._table.get(FeatureMask, ())

    def get(self, kind: type[T], default: Any = None) -> T:
        """The newest provider of `kind`, else `default`."""
        return cast("T", self.table.get(kind, default))

    def all(self, kind: type[T]) -> tuple[T, ...]:
        """Every provider of `kind`, oldest first."""
        return self._table.get(kind, ())


class FeatureSource(Protocol):
    """Where flags come from (config's plugin). `default` comes back for an unknown or broken flag."""

    def evaluate(self, name: str, default: Any, key: str | None, attributes: Mapping[str, Any]) -> Any: ...


class FeatureMask(Protocol):
    """Turns features off (degradation's plugin): booleans to False, variants to their default."""

    def masked(self, name: str) -> bool: ...


class VersionSplit(Protocol):
    """Which version a key belongs to (migration's plugin). The default says `""`: no filter."""

    def version_for(self, key: str) -> str:
        """The version that new work with this key goes to."""

    def may_claim(self, key: str, claimer: str, pinned: str) -> bool:
        """Whether a claimer of version `claimer` may take a task with `key`, pinned to version `pinned` or ""."""


class NoSplit:
    """The default `VersionSplit`: everybody may claim everything."""

    def version_for(self, key: str) -> str:
        return ""

    def may_claim(self, key: str, claimer: str, pinned: str) -> bool:
        return True


@attrs.frozen
class AcceptedTask:
    """A task that a `TaskSink` has stored durably; `status_path` is for that actor only."""

    id: str
    status_path: str


class TaskSink(Protocol):
    """Takes a request that can't be served now as a durable task (recovery's plugin)."""

    def accept(self, request: Mapping[str, Any], *, key: str, actor: str) -> Awaitable[AcceptedTask]: ...
