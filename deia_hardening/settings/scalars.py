"""Readers of leaves: strict, with the fix in the message. Only a whole number is taken for a float."""

from __future__ import annotations

import datetime
import enum
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.settings.core_schema import kind
from deia_hardening.settings.fields import NO_SPEC, FieldSpec
from deia_hardening.settings.gather import FAILED, Gather, Reader
from deia_hardening.settings.nodes import Mapping, Node, Scalar, Sequence
from deia_hardening.settings.problems import nearest, shown
from deia_hardening.settings.units import Bytes, Ratio, Seconds

_WORDS_FOR_BOOLS = {
    "yes": "true", "on": "true", "y": "true", "1": "true", "true": "true", "enabled": "true",
    "no": "false", "off": "false", "n": "false", "0": "false", "false": "false", "disabled": "false",
}  # fmt: skip


def written(node: Node) -> str:
    """What stands there, for a message."""
    if isinstance(node, Mapping):
        return "a map"
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node.value, str):
        return f"text {shown(node.value)}"
    if node.value is None:
        return kind(None)
    return f"{kind(node.value)} {node.text if node.text is not None else shown(node.value)}"[:80]


def bounds_text(spec: FieldSpec, show: Callable[[float], str] = str) -> str:
    """`1 to 64`, `at least 1`, `at most 64` or ''."""
    if spec.ge is not None and spec.le is not None:
        return f"{show(spec.ge)} to {show(spec.le)}"
    if spec.ge is not None:
        return f"at least {show(spec.ge)}"
    return f"at most {show(spec.le)}" if spec.le is not None else ""


def within(
    value: float, node: Node, key: str, gather: Gather, spec: FieldSpec, show: Callable[[float], str] = str
) -> bool:
    """Check the bounds of a number; what is outside is told with the nearest bound."""
    too_low = spec.ge is not None and value < spec.ge
    if too_low or (spec.le is not None and value > spec.le):
        bound = spec.ge if too_low else spec.le
        assert bound is not None
        shown_value = show(value) if abs(value) < 1e40 else "a huge number"
        gather.add(
            node,
            key,
            f"{shown_value} is too {'low' if too_low else 'high'}",
            bounds_text(spec, show),
            show(bound),
        )
        return False
    return True


def read_text(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    if isinstance(node, Scalar):
        value: Any = node.value
        if not isinstance(value, str) and node.text is not None and gather.raw_text(node):
            value = node.text
        if isinstance(value, str):
            text = gather.expand(value, node, key, spec)
            if text is FAILED:
                return FAILED
            if spec.ge is not None and len(text) < spec.ge:
                gather.add(node, key, "too short", f"at least {spec.ge:g} characters")
                return FAILED
            if spec.le is not None and len(text) > spec.le:
                gather.add(node, key, f"{len(text)} characters are too many", f"at most {spec.le:g} characters")
                return FAILED
            return text
        if value is not None and node.text is not None:
            gather.add(node, key, f"{written(node)} where text is expected", "text", f'"{node.text}"')
            return FAILED
    gather.add(node, key, f"{written(node)} where text is expected", "text")
    return FAILED


def read_secret(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    """A field of type `Secret`: text that is secret whether or not the field says so besides."""
    return read_text(node, key, gather, spec if spec.secret else attrs.evolve(spec, secret=True))


def read_int(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    if isinstance(node, Scalar):
        value = node.value
        if type(value) is int or (isinstance(value, int) and not isinstance(value, bool)):
            return value if within(value, node, key, gather, spec) else FAILED
        suggestion = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_ ,]{0,30}", value.strip()):
            suggestion = re.sub("[_ ,]", "", value.strip())
        elif isinstance(value, float) and math.isfinite(value):
            suggestion = str(round(value))
        allowed = bounds_text(spec)
        gather.add(
            node, key, f"{written(node)} where a whole number is expected",
            f"a whole number{', ' + allowed if allowed else ''}", suggestion,
        )  # fmt: skip
        return FAILED
    gather.add(node, key, f"{written(node)} where a whole number is expected", "a whole number")
    return FAILED


def read_float(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    if isinstance(node, Scalar):
        value = node.value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                gather.add(node, key, f"{written(node)} is not a finite number", "a finite number")
                return FAILED
            return number if within(number, node, key, gather, spec, lambda n: f"{n:g}") else FAILED
        suggestion = ""
        if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,30}([.,][0-9]{1,30})?\s*", value):
            suggestion = value.strip().replace(",", ".")
        gather.add(node, key, f"{written(node)} where a number is expected", "a number", suggestion)
        return FAILED
    gather.add(node, key, f"{written(node)} where a number is expected", "a number")
    return FAILED


def read_bool(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    if isinstance(node, Scalar):
        if isinstance(node.value, bool):
            return node.value
        suggestion = _WORDS_FOR_BOOLS.get(str(node.value).strip().lower(), "") if node.value is not None else ""
        if not suggestion and isinstance(node.value, str):
            suggestion = nearest(node.value, ("true", "false"))
        gather.add(node, key, f"{written(node)} where a boolean is expected", "true or false", suggestion)
        return FAILED
    gather.add(node, key, f"{written(node)} where a boolean is expected", "true or false")
    return FAILED


def read_none(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    if isinstance(node, Scalar) and node.value is None:
        return None
    gather.add(node, key, f"{written(node)} where nothing is expected", "null")
    return FAILED


def read_any(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    return gather.plain(node, key, spec)


def read_path(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    text = read_text(node, key, gather, NO_SPEC if spec is NO_SPEC else FieldSpec(secret=spec.secret))
    if text is FAILED:
        return FAILED
    if not text or "\0" in text:
        gather.add(node, key, "not a path", "the path of a file or folder")
        return FAILED
    return Path(text)


def unit_reader(unit: type[Seconds] | type[Bytes] | type[Ratio]) -> Reader:
    """The reader of a number with its unit."""

    def show(number: float) -> str:
        return str(unit(number))  # type: ignore[arg-type]

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar):
            value = node.value
            if isinstance(value, (str, unit)) or (value == 0 and type(value) in (int, float)):
                text = gather.expand(value, node, key, spec) if isinstance(value, str) else value
                if text is FAILED:
                    return FAILED
                try:
                    number = unit(text)
                except (ValueError, OverflowError) as error:
                    gather.add(node, key, str(error).split("; did you mean")[0], unit.example, unit.suggest(value))
                    return FAILED
                return number if within(number, node, key, gather, spec, show) else FAILED
            if unit is Seconds and isinstance(value, datetime.timedelta):
                number = Seconds(value.total_seconds())
                return number if within(number, node, key, gather, spec, show) else FAILED
            message = (
                f"{written(node)} has no unit" if type(value) in (int, float) else f"{written(node)} is not {unit.what}"
            )
            try:
                suggestion = unit.suggest(value)
            except (ValueError, OverflowError):
                suggestion = ""
            gather.add(node, key, message, unit.example, suggestion)
            return FAILED
        gather.add(node, key, f"{written(node)} where {unit.what} is expected", unit.example)
        return FAILED

    return read


def read_timedelta(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    value = _SECONDS(node, key, gather, spec)
    return FAILED if value is FAILED else datetime.timedelta(seconds=value)


_SECONDS = unit_reader(Seconds)


def literal_reader(allowed: tuple[Any, ...]) -> Reader:
    """The reader of one of a few values."""
    names = ", ".join(shown(value) if not isinstance(value, str) else value for value in allowed)

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar):
            for candidate in allowed:
                if type(candidate) is type(node.value) and candidate == node.value:
                    return candidate
            if node.text is not None and node.text in allowed:  # a word such as `on` or 1.0 as a name
                return node.text
            close = nearest(str(node.value), [str(value) for value in allowed])
            gather.add(node, key, f"{written(node)} is none of the choices", names, close)
        else:
            gather.add(node, key, f"{written(node)} where one of the choices is expected", names)
        return FAILED

    return read


def enum_reader(kind_: type[enum.Enum]) -> Reader:
    """The reader of an enum: by value where that is text, else by name in any case."""
    known: dict[Any, enum.Enum] = {}
    for member in kind_:
        known.setdefault(member.name, member)
        known.setdefault(member.name.lower(), member)
    for member in kind_:
        if isinstance(member.value, str):
            known[member.value] = member
    names = [member.value if isinstance(member.value, str) else member.name.lower() for member in kind_]

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar):
            if isinstance(node.value, kind_):
                return node.value
            word = node.value if isinstance(node.value, str) else node.text
            if word is not None and word in known:
                return known[word]
            close = nearest(str(word), names)
            gather.add(node, key, f"{written(node)} is none of the choices", ", ".join(names), close)
        else:
            gather.add(node, key, f"{written(node)} where one of the choices is expected", ", ".join(names))
        return FAILED

    return read
