"""YAML 1.2 (core schema) to nodes, through libyaml's event parser where PyYAML has it, else our own of version 1.2.

Refused, each with its place: duplicate keys, keys that are not text, unknown tags, merge keys, more than one
document, alias bombs and self-references, too deep nesting, what is not UTF-8. Nothing is ever constructed.
"""

from __future__ import annotations

import re
from typing import Any

from deia_hardening.settings.core_schema import resolve
from deia_hardening.settings.limits import DocumentLimits
from deia_hardening.settings.nodes import Entry, Mapping, Node, Place, Scalar, Sequence, Source
from deia_hardening.settings.problems import Problems, nearest, shown
from deia_hardening.settings.yaml12 import Parser
from deia_hardening.settings.yaml12_scalars import Invalid
from deia_hardening.settings.yaml_layout import Layout
from deia_hardening.settings.yaml_slips import find_slip

_PREFIX = "tag:yaml.org,2002:"
_SCALAR_TAGS = {"str", "int", "float", "bool", "null"}
_TAGS = sorted(f"!!{name}" for name in (*_SCALAR_TAGS, "map", "seq"))
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MISREAD = re.compile(
    r"^%|[\x85\u2028\u2029]|[\[{,]\s*(?:\?\S|-\s*[,\]}])|(?:^|[\s\[{,])[&*][^\s,\[\]{}]*:"
    r"|[|>][0-9+-]*[ \t]*(?:#.*)?\n +\n",
    re.MULTILINE,
)
"""Where libyaml may understand something else than YAML 1.2 does, without a word."""


class _Stop(Exception):  # noqa: N818 - control flow of this module only
    """The file can't be read any further; the problem is noted."""


def parse_yaml(data: bytes, file: str, problems: Problems, limits: DocumentLimits, source: Source) -> Node | None:
    """The one document in `data`, None for an empty one or where reading had to stop. Notes every problem."""
    text = decode(data, file, problems, source)
    if text is None:
        return None
    import yaml  # 60 ms: only a process that reads YAML pays for it

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    reading = _Reading(yaml, file, problems, limits, source, text)
    known = len(problems)
    try:
        if _MISREAD.search(text):
            return reading.by_specification()
        whole = text if text.endswith("\n") else f"{text}\n"  # libyaml drops the last line end of a block of text
        return reading.document(reading.watched(yaml.parse(whole, Loader=loader)))
    except _Stop:
        return None
    except yaml.MarkedYAMLError as error:
        told, problems[known:] = problems[known:], []
        try:
            return _Reading(yaml, file, problems, limits, source, text).by_specification()
        except _Stop:
            return None
        except Invalid:  # libyaml is right; what it says of ordinary slips is worded for people
            problems[known:] = told
            reading.syntax(error)
    except Invalid as error:
        problems.add(reading.at(error.line + 1, error.column + 1), "", f"not valid YAML: {error}", "YAML 1.2")
    except yaml.YAMLError as error:  # a ReaderError has no mark
        reading.unreadable(error)
    except RecursionError:
        problems.add(reading.at(1, 1), "", "nested too deeply", f"at most {limits.depth} levels")
    return None


def decode(data: bytes, file: str, problems: Problems, source: Source) -> str | None:
    """The text of a UTF-8 file (a byte-order mark is dropped); None, and a problem, at the first bad byte."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.add(Place(file, 1, 1, source), "", "the file is UTF-16", "UTF-8", "")
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        problems.add(
            Place(file, line, column, source),
            "",
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            "UTF-8 text",
        )
        return None
    return text.removeprefix("\ufeff")


class _Reading:
    """One file on its way from events to nodes."""

    def __init__(
        self, yaml: Any, file: str, problems: Problems, limits: DocumentLimits, source: Source, text: str
    ) -> None:
        self.yaml = yaml
        self.file = file
        self.problems = problems
        self.limits = limits
        self.source = source
        self.lines = text.splitlines()
        self.text = text
        self.anchors: dict[str, tuple[Node, int] | None] = {}
        self.count = 0
        self.open: list[Any] = []  # where the flow collections began that are being read

    def at(self, line: int, column: int) -> Place:
        return Place(self.file, line, column, self.source)

    def place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1, self.source)

    def watched(self, events: Any) -> Any:
        """libyaml's events, and a look at what it lets pass."""
        return Layout(self.yaml, self.lines, self.file, self.problems, self.source).watch(events)

    def by_specification(self) -> Node | None:
        """The document as the grammar of YAML 1.2 has it. Raises Invalid."""
        if _NOT_PRINTABLE.search(self.text):
            self.unreadable(ValueError("a control character"))
            raise _Stop
        return self.document(iter(Parser(self.yaml, self.text).events()))

    def document(self, events: Any) -> Node | None:
        yaml = self.yaml
        self.events = events
        node: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.problems.add(self.place(event), "", "a second document begins here", "one document per file")
                    raise _Stop
            elif isinstance(
                event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent, yaml.AliasEvent)
            ):
                node = self.node(event, "", 1)
        return node

    def node(self, event: Any, path: str, depth: int) -> Node:
        yaml = self.yaml
        place = self.place(event)
        self.count += 1
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path, place)
        if depth > self.limits.depth:
            self.problems.add(place, path, "nested too deeply", f"at most {self.limits.depth} levels")
            raise _Stop
        if self.count > self.limits.nodes:
            self.too_many(place, path)
        before = self.count
        anchor = event.anchor
        if anchor is not None:
            self.anchors[anchor] = None
        flow = bool(getattr(event, "flow_style", False))
        if flow:
            self.open.append(event.start_mark)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, path, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.tag(event, "seq", path, place)
            items: list[Node] = []
            for inner in self.events:
                if isinstance(inner, yaml.SequenceEndEvent):
                    break
                items.append(self.node(inner, f"{path}[{len(items)}]", depth + 1))
            node = Sequence(tuple(items), place)
        else:
            self.tag(event, "map", path, place)
            node = self.mapping(path, place, depth)
        if flow:
            self.open.pop()
        if anchor is not None:
            self.anchors[anchor] = (node, self.count - before + 1)
        return node

    def mapping(self, path: str, place: Place, depth: int) -> Mapping:
        yaml = self.yaml
        entries: dict[str, Entry] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key_place = self.place(event)
            key = self.key(event, path, key_place, depth)
            inner = f"{path}.{key}" if path else (key or "")
            node = self.node(next(self.events), inner if key is not None else path, depth + 1)
            if key is None:
                continue
            if key in entries:
                first = entries[key].place
                self.problems.add(
                    key_place,
                    inner,
                    "the key is there twice",
                    f"each key once; the first is in line {first.line}",
                )
                continue
            entries[key] = Entry(key_place, node)
        return Mapping(entries, place)

    def key(self, event: Any, path: str, place: Place, depth: int) -> str | None:
        node = self.node(event, path, depth + 1)
        if not isinstance(node, Scalar):
            self.problems.add(place, path, "the key is not text", "keys that are text")
            return None
        key = node
        if isinstance(event, self.yaml.AliasEvent):
            key = Scalar(key.value, place, key.text)
        if not isinstance(key.value, str):
            text = getattr(event, "value", "")
            quoted = f'"{text}"' if text else ""
            self.problems.add(place, path, f"the key {shown(key.value)} is not text", "keys that are text", quoted)
            return None
        if key.value == "<<" and key.text is not None:
            self.problems.add(
                place,
                path,
                "merge keys (<<) are not part of YAML 1.2",
                "the keys themselves, or an alias as a value",
            )
            return None
        return key.value

    def scalar(self, event: Any, path: str, place: Place) -> Scalar:
        text: str = event.value
        tag: str | None = event.tag
        plain = event.implicit[0]
        if tag is None or (tag == "!" and not plain):
            if not plain:
                return Scalar(text, place)
            return Scalar(self.resolved(text, path, place), place, text)
        name = self.tag(event, "", path, place)
        if name == "str" or name is None:
            return Scalar(text, place)
        value = self.resolved(text, path, place)
        if name == "float" and type(value) is int:
            value = float(value)
        if {int: "int", float: "float", bool: "bool", type(None): "null"}.get(type(value)) != name:
            self.problems.add(place, path, f"{shown(text)} is not a !!{name}", "text that matches its tag")
        return Scalar(value, place, text)

    def resolved(self, text: str, path: str, place: Place) -> object:
        try:
            return resolve(text)
        except ValueError as error:
            self.problems.add(place, path, str(error), "at most 400 digits, or quotes around text")
            return 0

    def tag(self, event: Any, expected: str, path: str, place: Place) -> str | None:
        tag: str | None = event.tag
        if tag is None or tag == "!":
            return None
        name = tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else ""
        if name in _SCALAR_TAGS if not expected else name == expected:
            return name
        display = f"!!{name}" if name else tag
        self.problems.add(
            place,
            path,
            f"unknown tag {shown(display)}",
            f"no tag, or one of {', '.join(_TAGS)}",
            nearest(display, _TAGS),
        )
        return None

    def alias(self, event: Any, path: str, place: Place) -> Node:
        known = self.anchors.get(event.anchor, "missing")
        if known is None:
            self.problems.add(place, path, f"the alias *{event.anchor} refers to what it stands in", "a tree")
            raise _Stop
        if isinstance(known, str):
            close = nearest(event.anchor, self.anchors)
            self.problems.add(
                place,
                path,
                f"there is no anchor &{event.anchor} above",
                "an anchor",
                f"*{close}" if close else "",
            )
            return Scalar(None, place)
        node, size = known
        self.count += size
        if self.count > self.limits.nodes:
            self.too_many(place, path)
        return node

    def too_many(self, place: Place, path: str) -> None:
        self.problems.add(
            place,
            path,
            "too many values (aliases are counted as often as used)",
            f"at most {self.limits.nodes}",
        )
        raise _Stop

    def syntax(self, error: Any) -> None:
        """Name the line where the damage is."""
        slip = find_slip(error, self.lines, self.open)
        self.problems.add(self.at(slip.line, slip.column), "", slip.message, slip.allowed)

    def unreadable(self, error: Exception) -> None:
        match = _NOT_PRINTABLE.search(self.text)
        if match is None:
            self.problems.add(self.at(1, 1), "", f"can't be read: {str(error).splitlines()[0]}", "YAML 1.2")
            return
        before = self.text[: match.start()]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        self.problems.add(
            self.at(line, column),
            "",
            f"the control character U+{ord(match.group()):04X} is not allowed",
            "printable text",
        )
