"""The parent's side of the inner role: what a front tells its version processes, and what it takes from them.

A hardened app attends to its home while it runs. Each `process:` upstream of that home then tells its child the
app's revision and mode whenever they change, and hands the child's records to the plugin that keeps records.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType

import attrs

from deia_hardening.events import Event, ModeChanged, RevisionApplied
from deia_hardening.mode import Mode

if TYPE_CHECKING:
    from deia_hardening.lifecycle import Core
    from deia_hardening.upstream.inner import Link

_FLAGS_CHANGED = "deia_config.events.FlagsChanged"


class Fate(Protocol):
    """What tells when a record is on disk: a journal's receipt."""

    async def durable(self) -> None: ...


class RecordSink(Protocol):
    """Who keeps the records of version processes (audit's plugin)."""

    def take(self, record: Mapping[str, Any], version: str) -> Fate:
        """Keep a record that the version process `version` handed up. Never blocks; any thread."""

    def lost(self, count: int, version: str) -> None:
        """Note that `count` records of `version` never came."""


@attrs.frozen
class Word:
    """What a version process is told: the number of the front's revision, and its mode."""

    revision: int
    mode: str


class Parent:
    """One hardened app as its version processes know it. It holds the app weakly."""

    def __init__(self, core: ReferenceType[Core]) -> None:
        self._core = core
        self._mode = Mode.FULL
        self._listeners: list[Callable[[Word], None]] = []

    @property
    def alive(self) -> bool:
        """Whether the app is still there."""
        return self._core() is not None

    @property
    def word(self) -> Word:
        """The latest."""
        core = self._core()
        return Word(0 if core is None else core.revision.number, self._mode.value)

    def listen(self, callback: Callable[[Word], None]) -> Callable[[], None]:
        """Call `callback(word)` on the background loop when mode, revision or flags changed; returns the end of it."""
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def take(self, record: Mapping[str, Any], version: str) -> Fate | None:
        """Have a record of a version process kept; None when nobody keeps records here."""
        sink = self._sink()
        return None if sink is None else sink.take(record, version)

    def lost(self, count: int, version: str) -> None:
        """Have it noted that records of a version process never came."""
        sink = self._sink()
        if sink is not None:
            sink.lost(count, version)

    def _sink(self) -> RecordSink | None:
        core = self._core()
        found: RecordSink | None = None if core is None else core.services.table.get(RecordSink)
        return found

    def mode_changed(self, event: ModeChanged) -> None:
        """The front's mode is another one."""
        self._mode = event.new
        self.changed(event)

    def changed(self, event: Event) -> None:
        """Something that version processes follow has changed."""
        for callback in list(self._listeners):
            callback(self.word)


_lock = threading.Lock()
_parents: dict[Path, list[Parent]] = {}


def join(reference: ReferenceType[Core], home: Path, link: Link | None) -> Callable[[], None]:
    """Take this app's place in its home: the parent of version processes, or in one of them (`link`) a follower.

    Returns the end of it.
    """
    if link is None:
        return attend(reference, home)
    from deia_hardening.inner import follow  # the upstreams behind it are an import that few need

    return follow(reference, link)


def attend(reference: ReferenceType[Core], home: Path) -> Callable[[], None]:
    """Make this app the parent of its home's version processes; returns the end of it."""
    core = reference()
    assert core is not None
    parent = Parent(reference)
    subscriptions = [
        core.events.subscribe(ModeChanged, parent.mode_changed),
        core.events.subscribe(RevisionApplied, parent.changed),
        core.events.subscribe(_FLAGS_CHANGED, parent.changed),
    ]
    with _lock:
        _parents[home] = [*(known for known in _parents.get(home, ()) if known.alive), parent]

    def end() -> None:
        for subscription in subscriptions:
            subscription.cancel()
        with _lock:
            left = [known for known in _parents.get(home, ()) if known is not parent]
            if left:
                _parents[home] = left
            else:
                _parents.pop(home, None)

    return end


def parent_of(home: Path) -> Parent | None:
    """The app that runs on this home in this process; the first of several."""
    with _lock:
        return next((parent for parent in _parents.get(home, ()) if parent.alive), None)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _parents.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
