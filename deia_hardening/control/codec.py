"""Between JSON or a query string and an operation's typed input; and from its output to JSON.

Inputs are read by the settings' strict readers, so every problem of a request is told at once, with the key, in
the same words as a settings file's.
"""

from __future__ import annotations

import base64
import collections.abc
import datetime
import types
from collections.abc import Mapping
from typing import Any, Final, Union, get_args, get_origin
from urllib.parse import parse_qsl

import attrs
import msgspec

from deia_hardening.errors import SettingsProblem
from deia_hardening.problem import Problem
from deia_hardening.settings.classes import fields_of
from deia_hardening.settings.core_schema import resolve
from deia_hardening.settings.fields import NO_SPEC, Secret
from deia_hardening.settings.gather import FAILED, Gather
from deia_hardening.settings.json_reader import parse_json
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Entry, Node, Place, Scalar, Source
from deia_hardening.settings.nodes import Mapping as MapNode
from deia_hardening.settings.nodes import Sequence as ListNode
from deia_hardening.settings.plain import to_plain
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.structure import is_settings_class, reader_for

_FROM: Final = Source.ENVIRONMENT
"""Like the environment a request may set any field, and `${…}` in it is refused rather than followed."""

_BODY: Final = "<body>"
_QUERY: Final = "<query>"
_MOST_FIELDS: Final = 256
_LONGEST_NUMBER: Final = 64
_WHOLE: Final = 2.0**53  # below it every whole number is exact as a float


def read_body(kind: type, body: bytes) -> Any:
    """The input object from a JSON body (an empty one is `{}`). Raises Problem 400 or 422."""
    problems = Problems()
    node = parse_json(body or b"{}", _BODY, problems, DEFAULT_LIMITS, _FROM)
    if node is None or problems:
        raise _refusal(400, "the body is no JSON that can be read", problems)
    if not isinstance(node, MapNode):
        raise Problem(422, "the body must be a JSON object with the operation's fields")
    return _structured(kind, _typed(node), problems)


def read_query(kind: type, query: str) -> Any:
    """The input object from a query string. A list's key is repeated; maps are JSON. Raises Problem 400 or 422."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=_MOST_FIELDS
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise Problem(400, f"the query string can't be read: {error}") from None
    fields = fields_of(kind)
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    problems = Problems()
    place = Place(_QUERY, 0, 0, _FROM)
    entries: dict[str, Entry] = {}
    for name, texts in given.items():
        shape = _shape(fields[name].kind) if name in fields else "one"
        if shape == "list":
            node: Node | None = ListNode(tuple(_scalar(text, place) for text in texts), place)
        elif len(texts) > 1:
            problems.add(place, name, f"came {len(texts)} times", "one value")
            continue
        elif shape == "map":
            inner = Problems()
            node = parse_json(texts[0].encode(), _QUERY, inner, DEFAULT_LIMITS, _FROM)
            problems.extend(attrs.evolve(problem, key=name) for problem in inner)
            node = _typed(node) if node is not None else None
        else:
            node = _scalar(texts[0], place)
        if node is not None:
            entries[name] = Entry(place, node)
    return _structured(kind, MapNode(entries, place), problems)


def _typed(node: Any) -> Any:
    """Nodes of JSON without what was written: 7 is a number there, never the text '7'; 7.0 is the same as 7."""
    if isinstance(node, Scalar):
        value = node.value
        if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
            value = int(value)
        return attrs.evolve(node, value=value, text=None)
    if isinstance(node, ListNode):
        return attrs.evolve(node, items=tuple(map(_typed, node.items)))
    entries = {name: Entry(entry.place, _typed(entry.node)) for name, entry in node.entries.items()}
    return attrs.evolve(node, entries=entries)


def _scalar(text: str, place: Place) -> Scalar:
    try:
        # A long row of digits stays text: turning it into a number would cost quadratic time.
        value = resolve(text) if len(text) <= _LONGEST_NUMBER else text
    except ValueError:
        value = text
    return Scalar(value, place, text)


def _structured(kind: type, node: MapNode, problems: Problems) -> Any:
    gather = Gather(problems, {}, DEFAULT_LIMITS)
    value = reader_for(kind)(node, "", gather, NO_SPEC)
    if problems or value is FAILED:
        raise _refusal(422, "the input was refused and nothing was done", problems)
    return value


def _refusal(status: int, message: str, problems: list[SettingsProblem]) -> Problem:
    shown = [_without_place(problem) for problem in problems[:20]]
    detail = message + (f": {shown[0]}" if shown else "")
    return Problem(status, detail, extensions={"problems": shown} if shown else None)


def _without_place(problem: SettingsProblem) -> str:
    return str(attrs.evolve(problem, file="", key=problem.key.lstrip("."))).partition("  ")[2]


def _shape(kind: Any) -> str:
    """Whether a field takes one value, a list, or a map: how a query string spells it."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        shapes = {_shape(each) for each in get_args(kind) if each is not type(None)}
        return shapes.pop() if len(shapes) == 1 else "one"
    base = origin or kind
    if isinstance(base, type) and base not in (str, bytes):
        if issubclass(base, collections.abc.Mapping) or is_settings_class(base):
            return "map"
        if issubclass(base, (list, tuple, set, frozenset)) or base.__module__ == "collections.abc":
            return "list"
    return "one"


def encode(value: Any) -> bytes:
    """An output as JSON. Secrets are masked."""
    return msgspec.json.encode(plain(value))


def plain(value: Any) -> Any:
    """An output as plain JSON data."""
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return to_plain(value, "", {})
    if isinstance(value, Mapping):
        return {str(to_plain(name, "", {})): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if attrs.has(type(value)):
        return {field.alias or field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    return to_plain(value, "", {})
