"""The merged settings document: files (or a mapping), then the environment, then run-time overrides.

`read` never raises for what people wrote: every problem is kept in the document and comes out, together with
those of structuring, in one error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.errors import SettingsProblem
from deia_hardening.settings.environment import lay_environment
from deia_hardening.settings.files import FileText, Snapshot, settled_snapshot, take_snapshot
from deia_hardening.settings.json_reader import parse_json
from deia_hardening.settings.limits import DEFAULT_LIMITS, DocumentLimits
from deia_hardening.settings.nodes import (
    Entry,
    Mapping,
    Node,
    Place,
    Scalar,
    Source,
    find,
    from_python,
    merge,
    to_python,
)
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml_reader import parse_yaml

RESERVED = ("enabled", "home", "app", "requests", "journal", "store", "control")
CORE_SECTIONS = ("requests", "journal", "store", "control")
MAPPING_NAME = "<mapping>"
OVERRIDES_NAME = "<overrides>"


@attrs.frozen
class SectionHead:
    """What is known of a section before its plugin is loaded."""

    name: str
    enabled: bool
    use: str | None
    place: Place


@attrs.frozen(eq=False)
class Document:
    """All sources merged, every value with its place and what it shadows."""

    root: Mapping = attrs.field(repr=False)
    problems: tuple[SettingsProblem, ...]
    broken: bool
    enabled: bool
    home: Path
    environment: MappingType[str, str] = attrs.field(repr=False)
    limits: DocumentLimits = DEFAULT_LIMITS
    _heads: dict[str, SectionHead] = attrs.field(factory=dict, repr=False)
    snapshot: Snapshot | None = attrs.field(default=None, repr=False)
    """The files it was read from; None for a mapping."""

    def sections_named(self) -> dict[str, SectionHead]:
        """The sections that name a plugin (all but the reserved ones), on or off, in the document's order."""
        return dict(self._heads)

    def section(self, name: str) -> Mapping | None:
        """A section's node, reserved or not, or None where no source has it."""
        entry = self.root.entries.get(name)
        return entry.node if entry is not None and isinstance(entry.node, Mapping) else None

    def find(self, key: str) -> Node | None:
        """The node at a dotted path, or None."""
        return find(self.root, key)

    def blame(self, key: str) -> list[tuple[Place, Any]]:
        """Where a value comes from, the winner first, then what it shadows. Empty where nobody set it.

        The values are what was written; whoever shows them must mask secrets.
        """
        node = find(self.root, key)
        return [] if node is None else [(each.place, to_python(each)) for each in (node, *node.beneath)]


def read(
    config: str | os.PathLike[str] | MappingType[str, Any] | Snapshot,
    env: MappingType[str, str] | None = None,
    overrides: MappingType[str, Any] | FileText | None = None,
    *,
    limits: DocumentLimits = DEFAULT_LIMITS,
) -> Document:
    """Read and merge every source. Problems are kept in the document, not raised.

    `config` is a folder, a file, a mapping or a `Snapshot` taken before (then no settings file is touched);
    `env` defaults to `os.environ`; `overrides` is a mapping or the text of an overrides file (JSON).
    """
    environment = os.environ if env is None else env
    problems = Problems()
    parts: list[Node] = []
    root_path: Path | None = None
    snapshot: Snapshot | None = None
    broken = False
    if isinstance(config, MappingType):
        node = _mapping_node(config, MAPPING_NAME, Source.MAPPING, problems, limits)
        broken = node is None
        parts.append(node or _empty(MAPPING_NAME, Source.MAPPING))
    else:
        snapshot = config if isinstance(config, Snapshot) else settled_snapshot(config) or take_snapshot(config, limits)
        root_path = snapshot.root
        problems.extend(problem for problem in snapshot.problems if isinstance(problem, SettingsProblem))
        for file in snapshot.files:
            parts.append(parse_file(file, problems, limits, Source.FILE) or _empty(file.name, Source.FILE))
        broken = bool(problems)
        if not parts:
            parts.append(_empty(str(root_path), Source.FILE))
    merged: Node = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    merged = lay_environment(_root(merged), environment, problems, partial=broken, reserved=RESERVED)
    if overrides:
        node = _overrides_node(overrides, problems, limits)
        if node is not None:
            merged = merge(merged, node)
    root = _root(merged)
    enabled = _flag(root, "enabled", problems)
    heads = _heads(root, problems)
    home = _home(root, root_path, environment, problems)
    return Document(root, tuple(problems), broken, enabled, home, environment, limits, heads, snapshot)


def parse_any(file: FileText, problems: Problems, limits: DocumentLimits, source: Source) -> Node | None:
    """One file's value, by its ending JSON or else YAML; None where it is empty or unreadable."""
    parse = parse_json if file.name.endswith(".json") else parse_yaml
    return parse(file.data, file.name, problems, limits, source)


def parse_file(file: FileText, problems: Problems, limits: DocumentLimits, source: Source) -> Mapping | None:
    """One file's top-level map, None where it is empty or unreadable. Notes every problem."""
    node = parse_any(file, problems, limits, source)
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return None
    if not isinstance(node, Mapping):
        problems.add(node.place, "", "the file holds no sections", "a map of sections, e.g. audit: {}")
        return None
    return _sections(node)


def _mapping_node(
    value: MappingType[str, Any], name: str, source: Source, problems: Problems, limits: DocumentLimits
) -> Mapping | None:
    place = Place(name, 0, 0, source)
    try:
        node = from_python(value, place)
    except TypeError as error:
        problems.add(place, "", str(error), "keys that are text")
        return None
    except RecursionError:
        problems.add(place, "", "nested too deeply, or in itself", f"at most {limits.depth} levels")
        return None
    return _sections(node) if isinstance(node, Mapping) else None


def _overrides_node(
    overrides: MappingType[str, Any] | FileText, problems: Problems, limits: DocumentLimits
) -> Mapping | None:
    if isinstance(overrides, FileText):
        return parse_file(overrides, problems, limits, Source.OVERRIDE)
    return _mapping_node(overrides, OVERRIDES_NAME, Source.OVERRIDE, problems, limits)


def _sections(root: Mapping) -> Mapping:
    """A section that is named and empty (`audit:`) is an empty map, before anything is merged."""
    if all(not isinstance(entry.node, Scalar) or entry.node.value is not None for entry in root.entries.values()):
        return root
    entries = {
        key: Entry(place, Mapping({}, node.place))
        if isinstance(node, Scalar) and node.value is None and key not in ("enabled", "home")
        else Entry(place, node)
        for key, (place, node) in root.entries.items()
    }
    return Mapping(entries, root.place)


def _empty(name: str, source: Source) -> Mapping:
    return Mapping({}, Place(name, 0, 0, source))


def _root(node: Node) -> Mapping:
    return node if isinstance(node, Mapping) else Mapping({}, node.place)


def _flag(section: Mapping, key: str, problems: Problems) -> bool:
    """An `enabled` in a map: true where it is missing."""
    entry = section.entries.get("enabled")
    if entry is None:
        return True
    node = entry.node
    if isinstance(node, Scalar) and isinstance(node.value, bool):
        return node.value
    text = str(node.value).lower() if isinstance(node, Scalar) else ""
    suggestion = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}.get(text, "")
    problems.add(node.place, key, "not a boolean", "true or false", suggestion)
    return True


def _heads(root: Mapping, problems: Problems) -> dict[str, SectionHead]:
    heads: dict[str, SectionHead] = {}
    for name, (place, node) in root.entries.items():
        if name in ("enabled", "home"):
            continue
        if not isinstance(node, Mapping):
            problems.add(node.place, name, "not a section", f"a map of settings, e.g. {name}: {{}}")
            continue
        if name in RESERVED:
            continue
        use: str | None = None
        entry = node.entries.get("use")
        if entry is not None:
            value = entry.node.value if isinstance(entry.node, Scalar) else None
            if isinstance(value, str) and value.count(":") == 1 and all(value.split(":")):
                use = value
                if entry.node.place.source is Source.OVERRIDE:
                    problems.add(
                        entry.node.place,
                        f"{name}.use",
                        "names code, so it can't be set at run time",
                        "a settings file",
                    )
            elif isinstance(value, type):
                use = f"{value.__module__}:{value.__qualname__}"
            else:
                problems.add(entry.node.place, f"{name}.use", "not an import string", "package.module:Class")
        heads[name] = SectionHead(name, _flag(node, f"{name}.enabled", problems), use, place)
    return heads


def _home(root: Mapping, config: Path | None, environment: MappingType[str, str], problems: Problems) -> Path:
    named = environment.get("DEIA_HOME")
    if named:
        return Path(named).expanduser().absolute()
    entry = root.entries.get("home")
    if entry is not None:
        node = entry.node
        written = node.text if isinstance(node, Scalar) and node.text is not None else None
        value = written if written is not None else node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            problems.add(node.place, "home", "not a path", "the path of a folder, e.g. .deia")
        elif node.place.source is Source.OVERRIDE:
            problems.add(node.place, "home", "can't be set at run time", "a settings file, or DEIA_HOME")
        else:
            return Path(value).expanduser().absolute()
    if config is not None:
        for folder in (config.absolute(), config.absolute().parent):
            if folder.name == "config" and folder.parent.name == ".deia":
                return folder.parent
    return Path(".deia").absolute()
