"""Readers of attrs classes, dataclasses and TypedDicts, and the choice among a union of them."""

from __future__ import annotations

import dataclasses
import enum
import re
import typing
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import attrs

from deia_hardening.settings.fields import NO_SPEC, FieldSpec, spec_of
from deia_hardening.settings.gather import FAILED, Gather, Reader
from deia_hardening.settings.nodes import Mapping, Node, Scalar, Source, leaves, nearest_place
from deia_hardening.settings.problems import nearest
from deia_hardening.settings.scalars import written
from deia_hardening.settings.structure import UnsupportedType, check_choices, reader_for

_QUOTED = re.compile(r"['\"`](\w+)['\"`]")


@attrs.frozen
class FieldInfo:
    """One field of a Settings class: the key in a document, the argument of the class, its type and spec."""

    key: str
    name: str
    kind: Any
    spec: FieldSpec
    required: bool
    default: Any = None


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """The settings that a class declares, by key. Raises UnsupportedType for bad annotations."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # whatever an annotation's evaluation raises
        raise UnsupportedType(f"the annotations of {kind.__qualname__} can't be resolved: {error}") from error
    if attrs.has(kind):
        return {
            field.alias or field.name: FieldInfo(
                field.alias or field.name,
                field.name,
                hints.get(field.name, Any),
                spec_of(field.metadata),
                field.default is attrs.NOTHING,
                field.default,
            )
            for field in attrs.fields(kind)
            if field.init
        }
    missing = dataclasses.MISSING
    return {
        field.name: FieldInfo(
            field.name,
            field.name,
            hints.get(field.name, Any),
            spec_of(field.metadata),
            field.default is missing and field.default_factory is missing,
            field.default,
        )
        for field in dataclasses.fields(kind)
        if field.init
    }


def class_reader(kind: type) -> Reader | None:
    """The reader of a class that can be structured from a map, else None."""
    if attrs.has(kind) or dataclasses.is_dataclass(kind):
        return _fields_reader(kind)
    if hasattr(kind, "model_fields") and hasattr(kind, "model_validate"):
        from deia_hardening.settings.pydantic_models import model_reader

        return model_reader(kind)
    if typing.is_typeddict(kind):
        return _typed_dict_reader(kind)
    return None


def _fields_reader(kind: type) -> Reader:
    compiled: dict[str, tuple[FieldInfo, Reader]] | None = None
    required: list[FieldInfo] = []
    check = getattr(kind, "__deia_check__", None)

    def compile_fields() -> dict[str, tuple[FieldInfo, Reader]]:
        # At first use, not when the reader is made: a class may hold itself.
        nonlocal compiled
        fields = fields_of(kind)
        required.extend(info for info in fields.values() if info.required)
        compiled = {key: (info, reader_for(info.kind)) for key, info in fields.items()}
        return compiled

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, kind):
            return node.value
        if not isinstance(node, Mapping):
            from deia_hardening.settings.secrecy import misfit  # it reads classes by this module

            gather.add(node, key, f"{misfit(node, kind)} where a section is expected", "a map of settings")
            return FAILED
        fields = compiled if compiled is not None else compile_fields()
        values: dict[str, Any] = {}
        failed = False
        for name, (place, child) in node.entries.items():
            inner = f"{key}.{name}" if key else name
            known = fields.get(name)
            if known is None:
                unknown_key(gather, place, inner, name, fields)
                failed = True
                continue
            info, reader = known
            if info.spec.file_only:
                refuse_overrides(child, inner, gather)
            if info.spec.secret:
                value = _read_secret(reader, child, inner, gather, info.spec)
            else:
                value = reader(child, inner, gather, info.spec)
            if value is FAILED or (
                info.spec.choices is not None and not check_choices(value, child, inner, gather, info.spec)
            ):
                failed = True
            else:
                values[name] = value
                if info.spec.secret and value is not None:
                    gather.hidden.setdefault(inner, "***")
        for info in required:
            if info.key not in node.entries:
                path = f"{key}.{info.key}" if key else info.key
                gather.add(node, path, "is required and missing", info.spec.doc or "a value")
                failed = True
        return FAILED if failed else _construct(kind, values, node, key, gather, check)

    return read


def _read_secret(reader: Reader, node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
    """Read a secret: what is wrong with it is told without showing what stands there."""
    trial = gather.trial()
    value = reader(node, key, trial, spec)
    refers = isinstance(node, Scalar) and isinstance(node.value, str) and "${" in node.value
    if not refers:
        trial.problems[:] = [
            attrs.evolve(each, message="the value of this secret does not fit", suggestion="")
            for each in trial.problems
        ]
    gather.accept(trial)
    return value


def _construct(kind: type, values: dict[str, Any], node: Mapping, key: str, gather: Gather, check: Any) -> Any:
    try:
        made = kind(**values)
    except Exception as error:  # the class's own validators and __post_init__ may raise anything
        # attrs' own validators put the field, the options and the value behind the sentence
        said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        named = next((name for name in _QUOTED.findall(said) if name in node.entries), "")
        path = f"{key}.{named}" if key and named else named or key
        gather.add(nearest_place(node, named), path, gather.scrubbed(said[:300]) or type(error).__name__)
        return FAILED
    if check is None:
        return made
    failed = False
    for path, message in _contradictions(made):
        place = nearest_place(node, path)
        gather.add(place, f"{key}.{path}" if key and path else path or key, gather.scrubbed(message))
        failed = True
    return FAILED if failed else made


def _contradictions(made: Any) -> Iterable[tuple[str, str]]:
    try:
        return list(made.__deia_check__())
    except Exception as error:  # a check that breaks refuses, with what it said
        return [("", f"its check failed: {type(error).__name__}: {error}")]


def unknown_key(gather: Gather, place: Any, path: str, name: str, known: Iterable[str]) -> None:
    """Note a key that the section does not have."""
    names = list(known)
    listed = ", ".join(sorted(names)[:12]) + (", …" if len(names) > 12 else "")
    gather.add(
        place,
        path,
        "unknown setting",
        f"one of {listed}" if names else "no settings here",
        nearest(name, names),
    )


def refuse_overrides(node: Node, key: str, gather: Gather) -> None:
    """Note every leaf of a file-only setting that a run-time override set."""
    for path, leaf in leaves(node):
        if leaf.place.source is Source.OVERRIDE:
            inner = f"{key}.{path}" if path else key
            gather.add(leaf, inner, "can't be set at run time", "a settings file or the environment")


def pick_class(members: Iterable[Any], node: Mapping) -> Any:
    """The class of a union that a map means: by a Literal field's value, else by the keys; or None."""
    candidates = [
        member
        for member in members
        if isinstance(member, type) and (attrs.has(member) or dataclasses.is_dataclass(member))
    ]
    if not candidates:
        return None
    scored: list[tuple[int, int, int, Any]] = []
    for position, candidate in enumerate(candidates):
        fields = fields_of(candidate)
        tagged = 0
        for name, info in fields.items():
            if get_origin(info.kind) is Literal or (isinstance(info.kind, type) and issubclass(info.kind, enum.Enum)):
                entry = node.entries.get(name)
                if entry is None:
                    continue
                value = entry.node.value if isinstance(entry.node, Scalar) else None
                tagged += 1 if value in get_args(info.kind) else -1
        unknown = sum(1 for name in node.entries if name not in fields)
        missing = sum(1 for info in fields.values() if info.required and info.key not in node.entries)
        scored.append((-tagged, unknown + missing, position, candidate))
    scored.sort(key=lambda score: score[:3])
    return scored[0][3]


def _typed_dict_reader(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind)
    readers: dict[str, Reader] = {name: reader_for(hint) for name, hint in hints.items()}

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if not isinstance(node, Mapping):
            gather.add(node, key, f"{written(node)} where a map is expected", "a map of settings")
            return FAILED
        values: dict[str, Any] = {}
        failed = False
        for name, (place, child) in node.entries.items():
            inner = f"{key}.{name}" if key else name
            if name not in readers:
                unknown_key(gather, place, inner, name, readers)
                failed = True
                continue
            values[name] = readers[name](child, inner, gather, NO_SPEC)
            failed = failed or values[name] is FAILED
        for name in sorted(kind.__required_keys__ - set(values)):
            gather.add(node, f"{key}.{name}" if key else name, "is required and missing", "a value")
            failed = True
        return FAILED if failed else values

    return read
