"""The parsed document as nodes that remember where they came from and what they shadow.

Nodes are never changed after parsing; merging makes new ones. Merging is associative: maps merge key by key,
everything else replaces what lies beneath and remembers it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import attrs


class Source(enum.Enum):
    """Which kind of source a value came from; later ones win."""

    MAPPING = "mapping"
    FILE = "file"
    ENVIRONMENT = "environment"
    OVERRIDE = "override"


class Place(NamedTuple):
    """Where a value stands. `line` and `column` count from 1 and are 0 where there is no text."""

    file: str
    line: int
    column: int
    source: Source

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@attrs.frozen
class Scalar:
    """A leaf. `text` is what was written, where that was plain (unquoted) text; else None."""

    value: Any
    place: Place
    text: str | None = None
    beneath: tuple[Node, ...] = ()


@attrs.frozen
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    place: Place
    beneath: tuple[Node, ...] = ()


class Entry(NamedTuple):
    """A key's place and its value."""

    place: Place
    node: Node


@attrs.frozen
class Mapping:
    """A map with text keys. A `cut` one replaced what was no map: it merges with nothing further down."""

    entries: dict[str, Entry]
    place: Place
    cut: bool = False
    beneath: tuple[Node, ...] = ()


Node = Scalar | Sequence | Mapping


def merge(lower: Node, upper: Node) -> Node:
    """Lay `upper` on top of `lower`. Pure and associative."""
    if isinstance(lower, Mapping) and isinstance(upper, Mapping) and not upper.cut:
        entries = dict(lower.entries)
        for key, entry in upper.entries.items():
            old = entries.get(key)
            entries[key] = entry if old is None else Entry(entry.place, merge(old.node, entry.node))
        return Mapping(entries, upper.place, lower.cut, upper.beneath + lower.beneath)
    beneath = (*upper.beneath, lower, *lower.beneath)
    if isinstance(upper, Mapping):
        return Mapping(upper.entries, upper.place, True, beneath)
    if isinstance(upper, Sequence):
        return Sequence(upper.items, upper.place, beneath)
    return Scalar(upper.value, upper.place, upper.text, beneath)


def to_python(node: Node) -> Any:
    """The plain value: dicts, lists and scalars."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [to_python(item) for item in node.items]
    return {key: to_python(entry.node) for key, entry in node.entries.items()}


def from_python(value: object, place: Place) -> Node:
    """Nodes for a value given in code. Instances of attrs classes and dataclasses become maps.

    Raises TypeError for a key that is not text and RecursionError for a value that holds itself.
    """
    if isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        entries: dict[str, Entry] = {}
        for key in value.keys():  # noqa: SIM118 - any Mapping
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
            entries[str(key)] = Entry(place, from_python(value[key], place))
        return Mapping(entries, place)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return Sequence(tuple(from_python(item, place) for item in items), place)
    if isinstance(value, PurePath):
        return Scalar(str(value), place)
    fields = _init_fields(value)
    if fields is not None:
        return Mapping({key: Entry(place, from_python(item, place)) for key, item in fields.items()}, place)
    return Scalar(value, place)


def _init_fields(value: object) -> dict[str, Any] | None:
    if isinstance(value, type):
        return None
    kind: Any = type(value)
    if attrs.has(kind):
        return {a.alias or a.name: getattr(value, a.name) for a in attrs.fields(kind) if a.init}
    described = getattr(type(value), "__dataclass_fields__", None)
    if described is not None:
        return {name: getattr(value, name) for name, field in described.items() if getattr(field, "init", False)}
    return None


def leaves(node: Node, path: str = "", *, lists: bool = False) -> Iterator[tuple[str, Node]]:
    """Every leaf with its dotted path; an empty map, and a list unless `lists` says otherwise, count as one leaf."""
    if isinstance(node, Mapping) and node.entries:
        for key, entry in node.entries.items():
            yield from leaves(entry.node, f"{path}.{key}" if path else key, lists=lists)
    elif lists and isinstance(node, Sequence) and node.items:
        for index, item in enumerate(node.items):
            yield from leaves(item, f"{path}[{index}]", lists=lists)
    else:
        yield path, node


def find(node: Node, path: str) -> Node | None:
    """The node at a dotted path (`sinks[2].url` and `sinks.2.url` both reach into lists), or None."""
    for part in path.replace("[", ".").replace("]", "").split(".") if path else ():
        if isinstance(node, Mapping) and part in node.entries:
            node = node.entries[part].node
        elif isinstance(node, Sequence) and part.isdecimal() and len(part) < 9 and int(part) < len(node.items):
            node = node.items[int(part)]
        else:
            return None
    return node


def nearest_place(node: Node, path: str) -> Place:
    """The place of the deepest node that exists along a dotted path: of the key where there is one."""
    place = node.place
    for part in path.replace("[", ".").replace("]", "").split(".") if path else ():
        if isinstance(node, Mapping) and part in node.entries:
            place, node = node.entries[part]
            if isinstance(node, Scalar):
                place = node.place
        elif isinstance(node, Sequence) and part.isdecimal() and len(part) < 9 and int(part) < len(node.items):
            node = node.items[int(part)]
            place = node.place
        else:
            break
    return place
