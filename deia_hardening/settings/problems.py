"""Collects everything that is wrong, with its place, before anything is refused."""

from __future__ import annotations

from collections.abc import Iterable

from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Place

_LONGEST_SHOWN = 60


class Problems(list[SettingsProblem]):
    """A list of problems that can be raised as one error."""

    def add(self, place: Place, key: str, message: str, allowed: str = "", suggestion: str = "") -> None:
        """Note one problem at a place."""
        self.append(SettingsProblem(place.file, place.line, place.column, key, message, allowed, suggestion))

    def error(self) -> SettingsError:
        """All of it as one error, in reading order, bounded in number."""
        unique = list(dict.fromkeys(self))
        most = DEFAULT_LIMITS.problems
        if len(unique) > most:
            rest = SettingsProblem("<settings>", 0, 0, "", f"{len(unique) - most} more problems are not shown")
            unique = [*unique[:most], rest]
        return SettingsError(unique)


def shown(value: object) -> str:
    """A value for a message: escaped, and cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    try:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    except Exception:  # a stranger's __repr__ may do anything
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def nearest(wrong: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or ''."""
    known = {name.lower().replace("-", "_"): name for name in names}
    plain = wrong.lower().replace("-", "_").strip()
    if plain in known:
        return known[plain]
    import difflib  # only where something is wrong: it costs 3 ms to import

    close = difflib.get_close_matches(plain[:200], known, 1, 0.6)
    return known[close[0]] if close else ""
