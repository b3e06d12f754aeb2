"""Pydantic models as settings: pydantic validates (strictly), the problems get the document's places.

Imported only where a model is given; pydantic is not a dependency.
"""

from __future__ import annotations

import json
from typing import Any

from deia_hardening.settings.classes import refuse_overrides, unknown_key
from deia_hardening.settings.fields import NO_SPEC, FieldSpec
from deia_hardening.settings.gather import FAILED, Gather, Reader
from deia_hardening.settings.nodes import Mapping, Node, Place, Scalar, Sequence
from deia_hardening.settings.scalars import written


def model_reader(kind: Any) -> Reader:
    """The reader of a pydantic model."""
    from pydantic import SecretBytes, SecretStr, ValidationError

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, kind):
            return node.value
        if not isinstance(node, Mapping):
            gather.add(node, key, f"{written(node)} where a section is expected", "a map of settings")
            return FAILED
        before = len(gather.problems)
        _walk(kind, node, key, gather, (SecretStr, SecretBytes))
        values = gather.plain(node, key, NO_SPEC)
        if values is FAILED:
            return FAILED
        _raw_texts(kind, node, values)
        try:
            try:
                data = json.dumps(values, ensure_ascii=False)
            except (TypeError, ValueError):  # a mapping in code may hold any object
                made = kind.model_validate(values)
            else:
                made = kind.model_validate_json(data, strict=True)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_context=False, include_input=False):
                place, path = _locate(node, key, each["loc"])
                gather.add(
                    place, path, "the value of this secret does not fit" if path in gather.hidden else each["msg"]
                )
            return FAILED
        except Exception as error:  # a validator of the model may raise anything
            gather.add(node, key, f"{type(error).__name__}: {str(error)[:300]}")
            return FAILED
        return FAILED if len(gather.problems) > before else made

    return read


def _names(kind: Any) -> dict[str, Any]:
    names: dict[str, Any] = {}
    by_name = kind.model_config.get("populate_by_name") or kind.model_config.get("validate_by_name")
    for name, field in kind.model_fields.items():
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
        names[alias or name] = field
        if by_name:
            names[name] = field
    return names


def _walk(kind: Any, node: Mapping, key: str, gather: Gather, secrets: tuple[type, ...]) -> None:
    """Unknown keys, which pydantic ignores unless told, file-only settings, and what is secret."""
    names = _names(kind)
    for name, (place, child) in node.entries.items():
        inner = f"{key}.{name}" if key else name
        field = names.get(name)
        if field is None:
            if kind.model_config.get("extra") not in ("allow", "forbid"):
                unknown_key(gather, place, inner, name, names)
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        secret = bool(extra.get("secret")) or any(_mentions(field.annotation, each) for each in secrets)
        if secret:
            gather.hidden.setdefault(inner, "***")
        if secret or extra.get("file_only"):
            refuse_overrides(child, inner, gather)
        annotation = field.annotation
        if isinstance(annotation, type) and hasattr(annotation, "__pydantic_fields__") and isinstance(child, Mapping):
            _walk(annotation, child, inner, gather, secrets)


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(each, kind) for each in getattr(annotation, "__args__", ()))


def _raw_texts(kind: Any, node: Mapping, values: dict[str, Any]) -> None:
    """A field of text takes the environment's raw text, not its YAML value."""
    for name, field in _names(kind).items():
        entry = node.entries.get(name)
        if entry is None:
            continue
        child, annotation = entry.node, field.annotation
        if isinstance(child, Mapping) and hasattr(annotation, "__pydantic_fields__"):
            _raw_texts(annotation, child, values[name])
        elif isinstance(child, Scalar) and child.text is not None and annotation is str and Gather.raw_text(child):
            values[name] = child.text


def _locate(node: Node, key: str, location: tuple[Any, ...]) -> tuple[Place, str]:
    """The deepest place along pydantic's location; parts that are no key (a union's tag) are skipped."""
    place, path = node.place, key
    for part in location:
        if isinstance(node, Mapping) and part in node.entries:
            entry = node.entries[part]
            node = entry.node
            place = node.place if isinstance(node, Scalar) else entry.place
            path = f"{path}.{part}" if path else str(part)
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            place = node.place
            path = f"{path}[{part}]"
        elif isinstance(node, Mapping) and part is location[-1]:
            path = f"{path}.{part}" if path else str(part)
    return place, path
