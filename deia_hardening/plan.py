"""From the settings' sources to a plan: which plugins are on, with which settings objects.

`harden()` and every reload take the same way, so what starts is what a reload would accept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.discovery import installed, plugin_class
from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.plugin import Plugin
from deia_hardening.sections import RequestsSettings

logger = logging.getLogger("deia_hardening")

Config = str | os.PathLike[str] | Mapping[str, Any]


@attrs.frozen(eq=False)
class Plan:
    """What the settings say: the home, each enabled plugin's class and settings object, a digest of it all."""

    home: Path
    digest: str
    classes: Mapping[str, type[Plugin[Any]]]
    sections: Mapping[str, Any]
    settings: Mapping[type, Any]
    document: Any = attrs.field(repr=False)
    loaded: Any = attrs.field(repr=False)


class Source:
    """Where an app's settings come from: a folder, a file or a mapping, with the app's own settings class.

    `without_app` leaves the section `app:` aside, for tools that don't import the app.
    """

    def __init__(self, config: Config, app_settings: type | None, *, without_app: bool = False) -> None:
        self.without_app = without_app
        if not isinstance(config, Mapping | str | os.PathLike):
            raise SettingsError(f"the settings are a folder, a file or a mapping, not {type(config).__name__}")
        self.config: Config = config if isinstance(config, Mapping) else Path(config).absolute()
        self.app_settings = app_settings
        self._first: Any = None

    def enabled(self) -> bool:
        """Whether the package is on at all (`DEIA__ENABLED=false` or `enabled: false` turn it off)."""
        from deia_hardening.settings import read

        document = self._first = read(self.config, os.environ, {})
        return bool(document.enabled)

    def load(self, overrides: Mapping[str, Any]) -> Plan:
        """Read every source anew. Blocking. Raises SettingsError with every problem of every source."""
        from deia_hardening.journal.settings import JournalSettings
        from deia_hardening.settings import read, structure
        from deia_hardening.store.settings import StoreSettings

        document, self._first = self._first, None
        if document is None or overrides:
            document = read(self.config, os.environ, overrides)
        if self.without_app:
            document = _without(document, "app")
        problems: list[SettingsProblem] = []
        classes: dict[str, type[Plugin[Any]]] = {}
        heads = dict(document.sections_named())
        wanted: dict[str, str | None] = {name: head.use for name, head in heads.items() if head.enabled}
        if document.section("control") is None or _enabled(document.section("control")):
            wanted["control"] = None
        for name, use in wanted.items():
            head = heads.get(name)
            try:
                if use is None and name != "control" and name not in installed():
                    continue  # structure() names the unknown section, with a suggestion
                classes[name] = plugin_class(name, use)
            except SettingsError as error:
                place = None if head is None else head.place
                for problem in error.problems:
                    if place is not None and not problem.line:
                        problem = attrs.evolve(problem, file=place.file, line=place.line, column=place.column, key=name)
                    problems.append(problem)
        sections: dict[str, type] = {
            "requests": RequestsSettings,
            "journal": JournalSettings,
            "store": StoreSettings,
            "control": plugin_class("control", None).Settings,
        }
        sections.update((name, kind.Settings) for name, kind in classes.items())
        try:
            loaded = structure(document, sections, app=self.app_settings, known=tuple(installed()))
        except SettingsError as error:
            told = {problem.key for problem in problems}
            problems.extend(problem for problem in error.problems if problem.key not in told)
        if problems:
            raise SettingsError(problems)
        settings = {type(value): value for value in loaded.sections.values()}
        if self.app_settings is not None:
            settings[self.app_settings] = loaded.app
        return Plan(
            home=loaded.home,
            digest=loaded.digest,
            classes=classes,
            sections={name: loaded.sections[name] for name in classes},
            settings=settings,
            document=document,
            loaded=loaded,
        )

    def first(self) -> tuple[Plan, Mapping[str, Any], str]:
        """The plan to start with: (plan, the run-time overrides in it, why the present files were passed over or "").

        With the plugin config on, the overrides of an earlier run are in force from the first revision, and where
        its settings allowed it, the last good files stand in for broken ones. Raises SettingsError otherwise.
        """
        from deia_hardening.settings import read
        from deia_hardening.settings.state import read_last_good, read_overrides

        document = self._first or read(self.config, os.environ, {})
        head = document.sections_named().get("config")
        overrides: Mapping[str, Any] = {}
        if head is not None and head.enabled and not self.without_app:
            overrides = read_overrides(document.home).nested()
        try:
            try:
                return self.load(overrides), overrides, ""
            except SettingsError:
                if not overrides:
                    raise
                return self.load({}), {}, ""  # the plugin config says what is wrong with them
        except SettingsError as error:
            good = None if isinstance(self.config, Mapping) else read_last_good(document.home)
            if good is None or not good.start_from_it:
                raise
            logger.error("the settings are broken; starting with the last good ones:\n%s", error)
            self._first = read(good.snapshot, os.environ, {})
            return self.load({}), {}, str(error.problems[0])

    def name(self) -> str:
        """How the source is called in messages."""
        return "<mapping>" if isinstance(self.config, Mapping) else str(self.config)


def _enabled(section: Any) -> bool:
    entry = section.entries.get("enabled")
    return entry is None or getattr(entry.node, "value", True) is not False


def _without(document: Any, section: str) -> Any:
    entries = {name: entry for name, entry in document.root.entries.items() if name != section}
    return attrs.evolve(document, root=attrs.evolve(document.root, entries=entries))
