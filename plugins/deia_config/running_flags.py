"""The feature flags in force: one object that a reload replaces by one assignment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from deia_config.flags.flagset import FlagSet
from deia_config.record import Recorder
from deia_hardening.context import context_variable
from deia_hardening.errors import SettingsError
from deia_hardening.plugin import FeatureMask, Host
from deia_hardening.settings import Snapshot

logger = logging.getLogger("deia_config")

_FROZEN: Any = ("deia_config", "flags")


@attrs.frozen
class Refusal:
    """The last change that was refused. `problems` are complete sentences with their places."""

    at: float
    by: str
    source: str
    problems: tuple[str, ...]
    digest: str = ""


class RunningFlags:
    """What evaluates flags and tells of their changes."""

    def __init__(self, host: Host, recorder: Recorder) -> None:
        self._host = host
        self._recorder = recorder
        self._flag_callbacks: list[Callable[[tuple[str, ...]], None]] = []
        self._stale_callbacks: list[Callable[[str], None]] = []
        self.flag_set = FlagSet()
        self.flag_files: Snapshot | None = None
        self.flags_refused: Refusal | None = None

    def evaluate(self, name: str, default: Any, key: str | None, attributes: Mapping[str, Any]) -> Any:
        """A flag's value for a handler (`feature()` and `variant()` come here). Never raises.

        Within one request every flag comes from the definitions that its first flag came from.
        """
        return self.flags_here().value(name, default, key, attributes)

    def flags_here(self) -> FlagSet:
        """The definitions in force: within a request those that its first flag came from."""
        context = context_variable.get()
        if context is None:
            return self.flag_set
        features = context._features
        if features is None:
            features = context.features
        flags: FlagSet | None = features.get(_FROZEN)
        if flags is None:
            flags = features[_FROZEN] = self.flag_set
        return flags

    async def finish(self) -> None:
        """Wait until every change that was made is in the files of the home."""
        await self._recorder.finish()

    def masked(self, name: str) -> bool:
        """Whether something turns the flag off at the moment (degradation does, by its settings)."""
        return any(mask.masked(name) for mask in self._host.services.all(FeatureMask))

    def on_flags_changed(self, callback: Callable[[tuple[str, ...]], None]) -> Callable[[], None]:
        """Call `callback(keys)` after each change of flags, on the background loop. Returns how to stop it."""
        return _added(self._flag_callbacks, callback)

    def on_flags_stale(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(why)` when new flag files were refused, so that older flags stay, and `callback("")` when
        the flags in force are again what the files say. Returns how to stop it."""
        return _added(self._stale_callbacks, callback)

    def adopt_flags(self, flags: FlagSet, files: Snapshot, *, first: bool = False) -> tuple[str, ...]:
        """Put flag definitions in force: one assignment. Returns the keys that changed."""
        self.flag_files = files
        changed = self.flag_set.changed(flags)
        self.flag_set = flags
        self.flags_agree()
        if changed and not first:
            self._recorder.flags_applied(changed, flags.digest)
            _call(self._flag_callbacks, changed)
        return changed

    def flags_agree(self) -> None:
        """The flags in force are what the files say."""
        if self.flags_refused is not None:
            self.flags_refused = None
            _call(self._stale_callbacks, "")

    def refuse_flags(self, error: SettingsError, digest: str) -> None:
        """Keep the running flags and tell why the new ones were refused."""
        problems = tuple(map(str, error.problems))
        if self.flags_refused is not None and self.flags_refused.digest == digest:
            return
        self.flags_refused = Refusal(self._host.clock.wall(), "flags", "files", problems, digest)
        self._recorder.flags_refused(problems, digest)
        _call(self._stale_callbacks, problems[0])


def _added(callbacks: list[Callable[[Any], None]], callback: Callable[[Any], None]) -> Callable[[], None]:
    callbacks.append(callback)

    def forget() -> None:
        with contextlib.suppress(ValueError):
            callbacks.remove(callback)

    return forget


def _call(callbacks: list[Callable[[Any], None]], told: Any) -> None:
    for callback in list(callbacks):
        try:
            callback(told)
        except Exception:
            logger.exception("somebody who is told of flags failed")
