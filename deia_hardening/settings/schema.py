"""JSON Schema (draft 2020-12) of the settings, for editors: bounds, documentation, the units' patterns."""

from __future__ import annotations

import collections.abc
import datetime
import enum
import types
import typing
from collections.abc import Mapping as MappingType
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from deia_hardening.settings.classes import FieldInfo, fields_of
from deia_hardening.settings.fields import NO_SPEC, FieldSpec, Secret
from deia_hardening.settings.nodes import from_python  # noqa: F401 - same vocabulary of types
from deia_hardening.settings.plain import to_plain
from deia_hardening.settings.structure import is_settings_class
from deia_hardening.settings.units import Bytes, Ratio, Seconds

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, Secret: {"type": "string"},
    int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    type(None): {"type": "null"}, Any: {}, object: {},
}  # fmt: skip


def document_schema(
    sections: MappingType[str, type],
    *,
    core: MappingType[str, type] | None = None,
    app: type | None = None,
) -> dict[str, Any]:
    """The schema of a whole settings file. `sections` are plugins, `core` the core's own sections."""
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "enabled": {
            "type": "boolean",
            "default": True,
            "description": "false: the app runs as if not hardened",
        },
        "home": {"type": "string", "description": "the folder of state, logs, keys and backups"},
    }
    for name, kind in {**(core or {}), **sections}.items():
        body = section_schema(kind, definitions)
        if name in sections:
            body["properties"] = {
                "enabled": {"type": "boolean", "default": True, "description": "false turns the plugin off"},
                "use": {
                    "type": "string",
                    "pattern": r"^[^:\s]+:[^:\s]+$",
                    "description": "package.module:Class of a plugin that is not installed under this name",
                },
                **body.get("properties", {}),
            }
        properties[name] = {"anyOf": [body, {"type": "null"}]} if "required" not in body else body
    properties["app"] = section_schema(app, definitions) if app is not None else {"type": "object"}
    schema: dict[str, Any] = {
        "$schema": DIALECT,
        "title": "deia-hardening settings",
        "type": "object",
        "properties": properties,
        # A section of another plugin names its class.
        "additionalProperties": {"type": "object", "required": ["use"]},
    }
    if definitions:
        schema["$defs"] = definitions
    return schema


def section_schema(kind: type, definitions: dict[str, Any] | None = None) -> dict[str, Any]:
    """The schema of one section's class. Shared classes go into `definitions` (`$defs`)."""
    if hasattr(kind, "model_json_schema"):
        schema: dict[str, Any] = kind.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            for field in part.get("properties", {}).values():
                if field.get("secret") or field.get("writeOnly"):
                    field.pop("default", None)
        if definitions is not None:
            definitions.update(schema.pop("$defs", {}))
        return schema
    properties: dict[str, Any] = {}
    required: list[str] = []
    for key, info in fields_of(kind).items():
        properties[key] = _field(info, definitions if definitions is not None else {}, (kind,))
        if info.required:
            required.append(key)
    body: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    doc = (kind.__doc__ or "").strip().split("\n\n")[0]
    if doc and not doc.startswith(("Method generated", f"{kind.__name__}(")):
        body["description"] = " ".join(doc.split())
    if required:
        body["required"] = required
    return body


def _field(info: FieldInfo, definitions: dict[str, Any], within: tuple[type, ...]) -> dict[str, Any]:
    spec = info.spec
    schema = _bounded(_type(info.kind, definitions, within), spec, info.kind)
    if spec.doc:
        schema["description"] = spec.doc
    notes = [
        note
        for on, note in (
            (spec.file_only and not spec.secret, "Only in a settings file or the environment."),
            (spec.secret, "Secret: write ${env:NAME} or ${file:PATH}."),
            (spec.restart, "Taken up at the next start."),
        )
        if on
    ]
    if notes:
        schema["description"] = " ".join([schema.get("description", "").rstrip(".") + ".", *notes]).lstrip(". ")
    if not info.required and not spec.secret:
        default = _default(info.default)
        if default is not _NO_DEFAULT:
            schema["default"] = default
    return schema


_NO_DEFAULT = object()


def _default(default: Any) -> Any:
    factory = getattr(default, "factory", None)  # an attrs Factory
    if factory is not None:
        if getattr(default, "takes_self", False):
            return _NO_DEFAULT
        default = factory()
    elif type(default).__name__ == "_MISSING_TYPE":
        return _NO_DEFAULT
    return to_plain(default, "", {})


def _type(kind: Any, definitions: dict[str, Any], within: tuple[type, ...]) -> dict[str, Any]:
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    if kind in (Seconds, Bytes, Ratio, datetime.timedelta):
        unit: Any = Seconds if kind is datetime.timedelta else kind
        return {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": unit.pattern,
                    "examples": unit.example.replace(" or ", ", ").split(", "),
                },
                {"const": 0},
            ]
        }
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _type(arguments[0], definitions, within)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Union or origin is types.UnionType:
        return {"anyOf": [_type(each, definitions, within) for each in arguments]}
    base = origin or kind
    if base is tuple and arguments and arguments[-1] is not Ellipsis:
        items = [_type(each, definitions, within) for each in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if base in (list, tuple, set, frozenset) or (
        isinstance(base, type)
        and base.__module__ == "collections.abc"
        and not issubclass(base, collections.abc.Mapping)
    ):
        inner = arguments[0] if arguments else Any
        return {"type": "array", "items": _type(inner, definitions, within)}
    if base is dict or (isinstance(base, type) and issubclass(base, collections.abc.Mapping)):
        return {
            "type": "object",
            "additionalProperties": _type(arguments[1] if len(arguments) > 1 else Any, definitions, within),
        }
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            return {"enum": [each.value if isinstance(each.value, str) else each.name.lower() for each in kind]}
        if issubclass(kind, PurePath):
            return {"type": "string"}
        if is_settings_class(kind):
            return _class(kind, definitions)
    return {}


def _class(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = section_schema(kind, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _bounded(schema: dict[str, Any], spec: FieldSpec, kind: Any) -> dict[str, Any]:
    if spec is NO_SPEC:
        return schema
    if spec.choices is not None:
        schema["enum"] = [to_plain(choice, "", {}) for choice in spec.choices]
    lowest, highest = {"array": ("minItems", "maxItems"), "string": ("minLength", "maxLength")}.get(
        schema.get("type", ""), ("minimum", "maximum")
    )
    if schema.get("type") in ("integer", "number", "array", "string"):
        if spec.ge is not None:
            schema[lowest] = spec.ge
        if spec.le is not None:
            schema[highest] = spec.le
    elif kind in (Seconds, Bytes, Ratio):
        bounds = [f"at least {kind(spec.ge)}"] if spec.ge is not None else []
        bounds += [f"at most {kind(spec.le)}"] if spec.le is not None else []
        if bounds:
            schema["x-bounds"] = ", ".join(bounds)
    return schema
