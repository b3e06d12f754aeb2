"""The errors that users of the package see.

Every error says what happened, where, what was kept and what to do now. All of them are `HardeningError`,
so one `except` catches whatever this package raises on its own account; the app's exceptions pass untouched.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs


class HardeningError(Exception):
    """The base of every error this package raises."""


@attrs.frozen
class SettingsProblem:
    """One thing that is wrong in the settings, with its place.

    `file` is a path, an environment variable's name or `<mapping>`; `line` and `column` count from 1 and are
    0 where there is no text. `key` is the dotted path of the setting.
    """

    file: str
    line: int
    column: int
    key: str
    message: str
    allowed: str = ""
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = [self.message]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.suggestion:
            parts.append(f"did you mean {self.suggestion}?")
        key = f"{self.key}: " if self.key else ""
        text = f"{place}  {key}{'; '.join(parts)}"
        # a key or a file's name may hold anything: nothing of it steers a terminal or begins a line of a log
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class SettingsError(HardeningError):
    """The settings were refused: every problem of every source, at once. Nothing was changed."""

    def __init__(self, problems: Iterable[SettingsProblem] | str) -> None:
        if isinstance(problems, str):
            problems = [SettingsProblem("<settings>", 0, 0, "", problems)]
        self.problems: tuple[SettingsProblem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ReloadRefused(HardeningError):  # noqa: N818 - it is a verdict, not a fault
    """A plugin, a worker or the app refused a proposed revision. The running one was kept."""

    def __init__(self, by: str, why: str) -> None:
        self.by = by
        self.why = why
        super().__init__(f"the new settings were refused by {by}: {why}; the running revision was kept")


class StartError(HardeningError):
    """A plugin could not start; what had started before it was stopped again, in reverse order."""

    def __init__(self, plugin: str, why: str) -> None:
        self.plugin = plugin
        self.why = why
        super().__init__(f"plugin '{plugin}' could not start: {why}; what had started was stopped again")


class NotEnabled(HardeningError):  # noqa: N818 - a fixed public name
    """`current(T)` was asked for a service whose plugin is off."""


class NotStarted(HardeningError):  # noqa: N818 - a fixed public name
    """A service was used before the hardened app started (no request and no lifespan yet)."""
