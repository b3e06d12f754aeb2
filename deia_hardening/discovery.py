"""Finding the plugins that the settings name: entry points of the group `deia_hardening.plugins`, import strings.

Only what is named is imported. The built-in five are found the way a stranger's are.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.peers import import_string
from deia_hardening.plugin import Plugin

GROUP = "deia_hardening.plugins"
CONTROL = "deia_hardening.control.plugin:ControlPlugin"
"""The one plugin that is on without being named."""

_found: dict[str, EntryPoint] | None = None
_classes: dict[str, type[Plugin[Any]]] = {}


def installed() -> dict[str, EntryPoint]:
    """The plugins that are installed, by name; nothing is imported. Read from the environment once."""
    global _found
    if _found is None:
        _found = {point.name: point for point in entry_points(group=GROUP)}
    return _found


def plugin_class(name: str, use: str | None) -> type[Plugin[Any]]:
    """The class behind section `name`: `use: pkg.mod:Class`, else the entry point of that name.

    Raises SettingsError when there is none, it can't be imported, or it is no Plugin.
    """
    key = f"{name}={use or ''}"
    cached = _classes.get(key)
    if cached is not None:
        return cached
    if use is not None:
        found = import_string(use)
        where = use
    elif name == "control":
        found = import_string(CONTROL)
        where = CONTROL
    else:
        point = installed().get(name)
        if point is None:
            raise SettingsError([SettingsProblem("<settings>", 0, 0, name, "no plugin of this name is installed")])
        where = point.value
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"plugin '{name}' ({where}) cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise SettingsError(f"plugin '{name}' ({where}) is not a subclass of deia_hardening.plugin.Plugin")
    for attribute in ("name", "Settings", "position"):
        if not hasattr(found, attribute):
            raise SettingsError(f"plugin '{name}' ({where}) lacks the class attribute '{attribute}'")
    _classes[key] = found
    return found


def forget() -> None:
    """Read the environment anew at the next look (a plugin was installed meanwhile; tests)."""
    global _found
    _found = None
    _classes.clear()
