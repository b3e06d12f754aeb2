"""`DEIA__SECTION__KEY=value`: the environment's layer of the settings.

A value is a YAML core scalar (its raw text where the setting is text). Only `…__ENABLED=true` may make a
section; a variable for a section that nobody named is a problem, because it would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType

from deia_hardening.settings.core_schema import resolve
from deia_hardening.settings.nodes import Entry, Mapping, Node, Place, Scalar, Source, merge
from deia_hardening.settings.problems import Problems, nearest

PREFIX = "DEIA__"
_LONGEST_VALUE = 65_536
_DEEPEST = 32


def lay_environment(
    root: Mapping,
    environment: MappingType[str, str],
    problems: Problems,
    *,
    partial: bool,
    reserved: SequenceType[str],
) -> Mapping:
    """The document with every `DEIA__…` variable on top.

    `partial` says that some file could not be read, so a section that is missing may be there.
    """
    names = sorted(name for name in environment if name.startswith(PREFIX))
    if not names:
        return root
    switched_on = set()
    for name in names:
        parts = name[len(PREFIX) :].lower().split("__")
        if len(parts) == 2 and parts[1] == "enabled" and environment[name].lower() == "true":
            switched_on.add(parts[0])
    merged: Node = root
    for name in names:
        place = Place(name, 0, 0, Source.ENVIRONMENT)
        parts = name[len(PREFIX) :].split("__")
        path = ".".join(parts).lower()
        if not all(parts) or len(parts) > _DEEPEST:
            problems.add(place, path, "not the name of a setting", "DEIA__SECTION__KEY")
            continue
        section = parts[0].lower()
        if len(parts) > 1 and section not in root.entries and section not in switched_on and section not in reserved:
            if not partial:
                _no_section(problems, place, path, section, root)
            continue
        text = environment[name]
        if len(text) > _LONGEST_VALUE or "\0" in text:
            problems.add(place, path, "too long, or not text", f"at most {_LONGEST_VALUE} characters")
            continue
        try:
            value = resolve(text)
        except ValueError as error:
            problems.add(place, path, str(error), "at most 400 digits")
            continue
        merged = merge(merged, _nest(_spelt(root, parts), Scalar(value, place, text), place))
    return merged if isinstance(merged, Mapping) else root


def _no_section(problems: Problems, place: Place, path: str, section: str, root: Mapping) -> None:
    close = nearest(section, root.entries)
    problems.add(
        place,
        path,
        f"no source has a section {section!r}, so this would do nothing",
        f"a section that is there, or DEIA__{section.upper()}__ENABLED=true besides",
        place.file.replace(section.upper(), close.upper(), 1) if close else "",
    )


def _spelt(root: Mapping, parts: list[str]) -> list[str]:
    """Lower case, but for keys that the document spells otherwise."""
    spelt: list[str] = []
    node: Node | None = root
    for part in parts:
        key = part.lower()
        if isinstance(node, Mapping) and key not in node.entries:
            key = next((known for known in node.entries if known.lower() == key), key)
        spelt.append(key)
        entry = node.entries.get(key) if isinstance(node, Mapping) else None
        node = entry.node if entry is not None else None
    return spelt


def _nest(parts: list[str], leaf: Node, place: Place) -> Node:
    node = leaf
    for part in reversed(parts):
        node = Mapping({part: Entry(place, node)}, place)
    return node
