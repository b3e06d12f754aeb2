"""From nodes to typed settings: a reader per type, compiled once and cached.

Strict: `'7'` is no 7, `true` is no 1; only a whole number may stand for a float. Every problem of a value is
noted with the line of the value that is wrong, or of the section that lacks it; reading goes on. Written
here rather than with cattrs because a cattrs hook sees a plain value, without the place that the message
needs, and because importing that library costs 65 ms.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import types
import typing
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from deia_hardening.settings.fields import NO_SPEC, FieldSpec, Secret
from deia_hardening.settings.gather import FAILED, Gather, Reader
from deia_hardening.settings.nodes import Mapping, Node, Scalar, Sequence
from deia_hardening.settings.problems import Problems, shown
from deia_hardening.settings.scalars import (
    enum_reader,
    literal_reader,
    read_any,
    read_bool,
    read_float,
    read_int,
    read_none,
    read_path,
    read_secret,
    read_text,
    read_timedelta,
    unit_reader,
    written,
)
from deia_hardening.settings.units import Bytes, Ratio, Seconds

_readers: dict[Any, Reader] = {}

_LEAVES: dict[Any, Reader] = {
    str: read_text, Secret: read_secret, int: read_int, float: read_float, bool: read_bool,
    None: read_none, type(None): read_none,
    Any: read_any, object: read_any, Path: read_path, PurePath: read_path, datetime.timedelta: read_timedelta,
    Seconds: unit_reader(Seconds), Bytes: unit_reader(Bytes), Ratio: unit_reader(Ratio),
}  # fmt: skip
_LISTS = {
    list,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
}
_SETS = {set, frozenset, collections.abc.Set, collections.abc.MutableSet}
_MAPS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


class UnsupportedType(TypeError):  # noqa: N818 - it is a developer's mistake, said at once
    """A Settings class declares a field of a type that no document can express."""


def reader_for(kind: Any) -> Reader:
    """The reader of a type. Raises UnsupportedType for one that no document can express."""
    try:
        found = _readers.get(kind)
    except TypeError:  # an unhashable Annotated or Literal
        return _compile(kind)
    if found is None:
        found = _readers[kind] = _compile(kind)
    return found


def _compile(kind: Any) -> Reader:
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    if type(kind).__name__ == "TypeAliasType":
        kind = kind.__value__
    if kind in _LEAVES:
        return _LEAVES[kind]
    origin = get_origin(kind)
    arguments = get_args(kind)
    if origin is typing.Annotated:
        return reader_for(arguments[0])
    if origin is Literal:
        return literal_reader(arguments)
    if origin is Union or origin is types.UnionType:
        return _union(arguments)
    base = origin or kind
    if base is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _list(arguments[0], tuple)
        return _fixed(arguments) if arguments else _list(Any, tuple)
    if base in _LISTS:
        return _list(
            arguments[0] if arguments else Any,
            list if base in (list, collections.abc.MutableSequence) else tuple,
        )
    if base in _SETS:
        return _list(
            arguments[0] if arguments else Any,
            set if base in (set, collections.abc.MutableSet) else frozenset,
        )
    if base in _MAPS:
        return _map(*(arguments or (str, Any)))
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            return enum_reader(kind)
        from deia_hardening.settings.classes import (
            class_reader,  # classes are read with this module's readers
        )

        found = class_reader(kind)
        if found is not None:
            return found
    raise UnsupportedType(f"a setting can't be of type {kind!r}")


def _list(item: Any, build: Callable[[list[Any]], Any]) -> Reader:
    inner = reader_for(item)

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if not isinstance(node, Sequence):
            text = node.text or str(node.value) if isinstance(node, Scalar) and node.value is not None else ""
            there = _misfit(node, item)
            suggestion = f"[{text}]" if text and len(text) < 60 and not spec.secret and there == written(node) else ""
            gather.add(node, key, f"{there} where a list is expected", "a list", suggestion)
            return FAILED
        length = len(node.items)
        if (spec.ge is not None and length < spec.ge) or (spec.le is not None and length > spec.le):
            low = f"at least {spec.ge:g}" if spec.ge is not None and length < spec.ge else f"at most {spec.le:g}"
            gather.add(node, key, f"{length} items", f"{low} items")
            return FAILED
        each = FieldSpec(secret=True) if spec.secret else NO_SPEC
        values = [inner(child, f"{key}[{index}]", gather, each) for index, child in enumerate(node.items)]
        if any(value is FAILED for value in values):
            return FAILED
        return _built(build, values, node, key, gather)

    return read


def _misfit(node: Node, *kinds: Any) -> str:
    from deia_hardening.settings.secrecy import misfit  # it reads classes, which are read with this module's readers

    return misfit(node, *kinds)


def _built(build: Callable[[list[Any]], Any], values: list[Any], node: Node, key: str, gather: Gather) -> Any:
    try:
        return build(values)
    except TypeError:
        gather.add(node, key, "holds what can't be in a set", "plain values")
        return FAILED


def _fixed(items: tuple[Any, ...]) -> Reader:
    readers = [reader_for(item) for item in items]

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if not isinstance(node, Sequence) or len(node.items) != len(readers):
            gather.add(
                node,
                key,
                f"{_misfit(node, *items)} where {len(readers)} values are expected",
                f"a list of {len(readers)}",
            )
            return FAILED
        values = [
            reader(child, f"{key}[{index}]", gather, NO_SPEC)
            for index, (reader, child) in enumerate(zip(readers, node.items, strict=True))
        ]
        return FAILED if any(value is FAILED for value in values) else tuple(values)

    return read


def _map(key_type: Any, value_type: Any) -> Reader:
    read_value = reader_for(value_type)
    read_key = None if key_type in (str, Any) else reader_for(key_type)

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if not isinstance(node, Mapping):
            gather.add(node, key, f"{_misfit(node, value_type)} where a map is expected", "a map, key: value")
            return FAILED
        each = FieldSpec(secret=True) if spec.secret else NO_SPEC
        result: dict[Any, Any] = {}
        failed = False
        for name, (place, child) in node.entries.items():
            inner = f"{key}.{name}" if key else name
            real: Any = name
            if read_key is not None:
                text: Any = int(name) if key_type is int and name.isdecimal() and len(name) < 19 else name
                real = read_key(Scalar(text, place, name), inner, gather, NO_SPEC)
            value = read_value(child, inner, gather, each)
            if real is FAILED or value is FAILED:
                failed = True
            else:
                result[real] = value
        return FAILED if failed else result

    return read


def _union(members: tuple[Any, ...]) -> Reader:
    none = type(None) in members
    others = [member for member in members if member is not type(None)]
    readers = [reader_for(member) for member in others]
    if len(readers) == 1:
        only = readers[0]

        def read_optional(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
            if isinstance(node, Scalar) and node.value is None:
                return None
            return only(node, key, gather, spec)

        return read_optional
    from deia_hardening.settings.classes import pick_class

    names = " or ".join(getattr(member, "__name__", None) or str(member) for member in others)

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if none and isinstance(node, Scalar) and node.value is None:
            return None
        if isinstance(node, Mapping):
            picked = pick_class(others, node)
            if picked is not None:
                return reader_for(picked)(node, key, gather, spec)
        trials: list[Gather] = []
        for reader in readers:
            trial = gather.trial()
            value = reader(node, key, trial, spec)
            if value is not FAILED:
                gather.accept(trial)
                return value
            trials.append(trial)
        if isinstance(node, Scalar):
            told = [problem for trial in trials for problem in trial.problems]
            allowed = ", or ".join(dict.fromkeys(each.allowed for each in told if each.allowed)) or names
            suggestion = next((each.suggestion for each in told if each.suggestion), "")
            gather.add(node, key, f"{written(node)} does not fit", allowed, suggestion)
        else:
            gather.accept(max(trials, key=lambda trial: _depth(trial.problems)))
        return FAILED

    return read


def _depth(problems: Problems) -> int:
    return max((problem.key.count(".") + problem.key.count("[") for problem in problems), default=0)


def check_choices(value: Any, node: Node, key: str, gather: Gather, spec: FieldSpec) -> bool:
    """Check `choices` of a field, and tell the nearest one."""
    assert spec.choices is not None
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(check_choices(item, node, key, gather, spec) for item in value)
    if value is None or value in spec.choices:
        return True
    from deia_hardening.settings.problems import nearest

    names = [str(choice) for choice in spec.choices]
    gather.add(node, key, f"{shown(value)} is none of the choices", ", ".join(names), nearest(str(value), names))
    return False


def is_settings_class(kind: object) -> bool:
    """Whether a class can be structured from a map."""
    return isinstance(kind, type) and (
        attrs.has(kind) or hasattr(kind, "__dataclass_fields__") or hasattr(kind, "model_fields")
    )
