"""Which keys of a Settings class are secret, and what was written without them: for whoever shows it.

By the types alone, so it holds for values that are not in force too (what a later source shadows).
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from deia_hardening.settings.classes import fields_of
from deia_hardening.settings.nodes import Mapping, Node, Scalar
from deia_hardening.settings.nodes import Sequence as ListNode
from deia_hardening.settings.plain import MASK
from deia_hardening.settings.scalars import written
from deia_hardening.settings.structure import is_settings_class

_REFERENCE = re.compile(r"(?<!\$)(?:\$\$)*\$\{")
_SECRET_TYPES = ("SecretStr", "SecretBytes", "Secret")


def types_of(annotation: Any) -> Iterator[Any]:
    """The types that an annotation names, `None` and `Annotated` apart."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        yield from types_of(get_args(annotation)[0])
    elif origin is Union or origin is types.UnionType:
        for each in get_args(annotation):
            yield from types_of(each)
    elif annotation is not type(None):
        yield annotation


def base_of(annotation: Any) -> Any:
    """`list`, `dict` … of a type with arguments; abstract ones count as those."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and origin.__module__ == "collections.abc":
        return dict if origin.__name__.endswith("Mapping") else list
    return origin


def names_secret(annotation: Any) -> bool:
    """Whether an annotation has one of pydantic's secret types in it."""
    if isinstance(annotation, type) and annotation.__module__.startswith("pydantic"):
        return any(base.__name__ in _SECRET_TYPES for base in annotation.__mro__)
    return any(names_secret(each) for each in get_args(annotation))


def is_secret(kind: Any, path: Sequence[str | int]) -> bool:
    """Whether what stands at `path` in a section of class `kind` is secret, or in something that is."""
    if not path:
        return False
    part, rest = path[0], path[1:]
    for each in types_of(kind):
        if is_settings_class(each):
            for name, inner, secret in _fields(each):
                if name == part and (secret or is_secret(inner, rest)):
                    return True
        elif base_of(each) is dict:
            if any(is_secret(inner, rest) for inner in get_args(each)[1:]):
                return True
        elif any(is_secret(inner, rest) for inner in get_args(each)):
            return True
    return False


def holds_secret(kind: Any, within: tuple[Any, ...] = ()) -> bool:
    """Whether a value of this type has a secret anywhere in it: then what stands in its place is not shown either."""
    for each in types_of(kind):
        if names_secret(each):
            return True
        if is_settings_class(each):
            if each not in within and any(
                secret or holds_secret(inner, (*within, each)) for _, inner, secret in _fields(each)
            ):
                return True
        elif any(holds_secret(inner, within) for inner in get_args(each) if inner is not Ellipsis):
            return True
    return False


def misfit(node: Node, *kinds: Any) -> str:
    """What stands where something of these types is expected, for a message."""
    return "what is there" if any(map(holds_secret, kinds)) else written(node)


def _fields(kind: Any) -> Iterator[tuple[str, Any, bool]]:
    if hasattr(kind, "model_fields"):
        for name, field in kind.model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            secret = bool(extra.get("secret")) or names_secret(field.annotation)
            for each in {name, field.alias, field.validation_alias}:
                if isinstance(each, str):
                    yield each, field.annotation, secret
    else:
        for name, info in fields_of(kind).items():
            yield name, info.kind, info.spec.secret


def without_secrets(node: Node, kind: Any, path: tuple[str | int, ...]) -> Any:
    """What was written at a node, as plain data: a secret as its reference, or masked."""
    if isinstance(node, Mapping):
        return {name: without_secrets(entry.node, kind, (*path, name)) for name, entry in node.entries.items()}
    if isinstance(node, ListNode):
        return [without_secrets(item, kind, (*path, index)) for index, item in enumerate(node.items)]
    assert isinstance(node, Scalar)
    return MASK if node.value is not None and not refers(node.value) and is_secret(kind, path) else node.value


def refers(value: object) -> bool:
    """Whether a text has a `${…}` reference in it (`$${` is none)."""
    return isinstance(value, str) and _REFERENCE.search(value) is not None
