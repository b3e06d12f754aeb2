"""Pydantic models as settings: pydantic validates (strictly), the problems get the document's places and the fix.

Imported only where a model is given; pydantic is not a dependency.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, Literal, get_args, get_origin

from deia_hardening.settings.classes import refuse_overrides, unknown_key
from deia_hardening.settings.fields import NO_SPEC, FieldSpec, Secret
from deia_hardening.settings.gather import FAILED, Gather, Reader
from deia_hardening.settings.nodes import Mapping, Node, Place, Scalar, Sequence, leaves
from deia_hardening.settings.problems import nearest
from deia_hardening.settings.scalars import written
from deia_hardening.settings.secrecy import base_of, holds_secret, misfit, names_secret, types_of
from deia_hardening.settings.units import Seconds

_QUOTED = re.compile(r"'([^']*)'")
_WORTH_FINDING = 4
"""Characters of a secret that is looked for within longer texts too."""
_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def model_reader(kind: Any) -> Reader:
    """The reader of a pydantic model."""
    from pydantic import ValidationError

    def read(node: Node, key: str, gather: Gather, spec: FieldSpec) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, kind):
            return node.value
        if not isinstance(node, Mapping):
            gather.add(node, key, f"{misfit(node, kind)} where a section is expected", "a map of settings")
            return FAILED
        before = len(gather.problems)
        values = gather.plain(node, key, NO_SPEC)
        if values is FAILED:
            return FAILED
        values = _fitted(kind, node, values, key, gather)
        try:
            try:
                data = json.dumps(values, ensure_ascii=False)
            except (TypeError, ValueError):  # a mapping in code may hold any object
                made = kind.model_validate(values)
            else:
                made = kind.model_validate_json(data, strict=True)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                _tell(each, node, key, gather, kind)
            return FAILED
        except Exception as error:  # a validator of the model may raise anything
            gather.add(node, key, gather.scrubbed(f"{type(error).__name__}: {str(error)[:300]}"))
            return FAILED
        if len(gather.problems) > before:
            return FAILED
        return _hidden(made, [text for path, text in gather.secrets.items() if text and path.startswith(key)])

    return read


def _hidden(value: Any, secrets: list[str]) -> Any:
    """The value with its secret texts as `Secret`, which shows in no repr: pydantic has made plain ones of them."""
    if type(value) is str:
        secret = any(text == value or (len(text) >= _WORTH_FINDING and text in value) for text in secrets)
        return Secret(value) if secret else value
    if hasattr(type(value), "__pydantic_validator__"):
        for name, item in vars(value).items():
            vars(value)[name] = _hidden(item, secrets)
    elif type(value) is dict:
        return {name: _hidden(item, secrets) for name, item in value.items()}
    elif type(value) in (list, tuple, set, frozenset):
        return type(value)(_hidden(item, secrets) for item in value)
    return value


# -- what pydantic does not look at: unknown keys, who may set what, secrets, units --------------------------------


def _fitted(annotation: Any, node: Node, value: Any, key: str, gather: Gather) -> Any:
    """The plain value made ready for pydantic; unknown keys and file-only settings are noted, secrets hidden."""
    options = list(types_of(annotation))
    if isinstance(node, Mapping):
        model = _model(options, node)
        if model is not None:
            return _fitted_model(model, node, value, key, gather)
        inner = next((get_args(each)[1] for each in options if base_of(each) is dict and len(get_args(each)) > 1), None)
        if inner is not None:
            for name, entry in node.entries.items():
                value[name] = _fitted(inner, entry.node, value[name], f"{key}.{name}", gather)
    elif isinstance(node, Sequence):
        listed = next(
            (each for each in options if base_of(each) in (list, tuple, set, frozenset) and get_args(each)), None
        )
        kinds = get_args(listed) if listed is not None else ()
        for index, item in enumerate(node.items if kinds else ()):
            fixed = base_of(listed) is tuple and Ellipsis not in kinds
            inner = kinds[index] if fixed and index < len(kinds) else kinds[0]
            value[index] = _fitted(inner, item, value[index], f"{key}[{index}]", gather)
    elif options == [str] and node.text is not None and Gather.raw_text(node):
        return node.text  # a text takes the environment's raw text, not its YAML value
    elif datetime.timedelta in options and isinstance(value, str):
        try:
            return f"PT{float(Seconds(value)):f}S"
        except ValueError:
            return value
    return value


def _fitted_model(model: Any, node: Mapping, value: Any, key: str, gather: Gather) -> Any:
    names = _names(model)
    for name, (place, child) in node.entries.items():
        inner = f"{key}.{name}" if key else name
        field = names.get(name)
        if field is None:
            if model.model_config.get("extra") != "allow":
                unknown_key(gather, place, inner, name, names)
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        secret = bool(extra.get("secret")) or names_secret(field.annotation)
        if secret:
            if extra.get("secret"):
                field.repr = False  # a SecretStr hides itself
            gather.hidden.setdefault(inner, "***")
            for path, leaf in leaves(child, lists=True):
                if isinstance(leaf, Scalar) and isinstance(leaf.value, (str, int)):
                    gather.secrets.setdefault(f"{inner}.{path}" if path else inner, str(leaf.value))
        if secret or extra.get("file_only"):
            refuse_overrides(child, inner, gather)
        value[name] = _fitted(field.annotation, child, value[name], inner, gather)
    return value


def _model(options: list[Any], node: Mapping) -> Any:
    """The model among the options that a map means: by a tag of its own, else by its keys; or None."""
    scored: list[tuple[int, int, int, Any]] = []
    for position, each in enumerate(options):
        if not (isinstance(each, type) and hasattr(each, "model_fields")):
            continue
        names, tags = _names(each), 0
        for name, field in names.items():
            entry = node.entries.get(name)
            if entry is not None and get_origin(field.annotation) is Literal and isinstance(entry.node, Scalar):
                tags += 1 if entry.node.value in get_args(field.annotation) else -1
        scored.append((-tags, sum(name not in names for name in node.entries), position, each))
    return min(scored, key=lambda each: each[:3])[3] if scored else None


def _names(kind: Any) -> dict[str, Any]:
    names: dict[str, Any] = {}
    by_name = kind.model_config.get("populate_by_name") or kind.model_config.get("validate_by_name")
    for name, field in kind.model_fields.items():
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
        names[alias or name] = field
        if by_name:
            names[name] = field
    return names


# -- what pydantic says -----------------------------------------------------------------------------------------


def _tell(error: Any, node: Mapping, key: str, gather: Gather, model: Any) -> None:
    kind, text = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        return  # noted with the nearest name
    place, path, found = _locate(node, key, error["loc"])
    if found is not None and holds_secret(_annotation(model, error["loc"])):
        found = None  # it may be meant as the whole of what has a secret in it
    if any(path == each or path.startswith((f"{each}.", f"{each}[")) for each in gather.hidden):
        gather.add(place, path, "the value of this secret does not fit")
        return
    text = gather.scrubbed(re.sub(r"^(Value|Assertion) (error|failed), ", "", text))
    if kind == "missing":
        gather.add(place, path, "is required and missing", "a value")
        return
    expected = str(error.get("ctx", {}).get("expected") or error.get("ctx", {}).get("expected_tags") or "")
    allowed = re.sub(r"^.*? should (be|have|match) ", "", text) if " should " in text else expected
    if "duration" in text:
        allowed = Seconds.example
    if text.startswith("Input should") and found is not None:
        text = f"{written(found)} does not fit"
    united = re.search(r"with its unit, e\.g\. (\S+)$", text)
    if united:
        gather.add(place, path, text[: united.start()] + "with its unit", "a number and its unit", united.group(1))
        return
    gather.add(place, path, text, allowed, _suggested(kind, found, expected))


def _annotation(kind: Any, location: tuple[Any, ...]) -> Any:
    """What a model expects at pydantic's location; parts that lead nowhere (a union's tag) are skipped."""
    for part in location:
        for each in types_of(kind):
            if isinstance(each, type) and hasattr(each, "model_fields"):
                field = _names(each).get(part)
                if field is not None:
                    kind = field.annotation
                    break
            elif base_of(each) is dict or isinstance(part, int):
                inner = [inner for inner in get_args(each) if inner is not Ellipsis]
                if inner:
                    kind = inner[-1]
                    break
    return kind


def _suggested(kind: str, found: Node | None, expected: str) -> str:
    value = found.value if isinstance(found, Scalar) else None
    if expected:
        tag = str(value) if value is not None else ""
        return nearest(tag, _QUOTED.findall(expected)) if tag else ""
    if isinstance(value, str):
        if kind == "bool_type":
            return _WORDS.get(value.lower(), value.lower() if value.lower() in ("true", "false") else "")
        if kind in ("int_type", "float_type") and re.fullmatch(r"[-+]?\d+(\.\d+)?", value.strip()):
            return value.strip()
        if kind in ("list_type", "set_type", "tuple_type"):
            return f"[{value}]"
    elif kind == "string_type" and found is not None and isinstance(found, Scalar) and found.text:
        return f'"{found.text}"'
    elif kind == "bool_type" and value in (0, 1):
        return "true" if value else "false"
    return ""


def _locate(node: Node, key: str, location: tuple[Any, ...]) -> tuple[Place, str, Node | None]:
    """The deepest place along pydantic's location; parts that are no key (a union's tag) are skipped."""
    place, path, found = node.place, key, node
    for part in location:
        if isinstance(found, Mapping) and part in found.entries:
            entry = found.entries[part]
            found = entry.node
            place = found.place if isinstance(found, Scalar) else entry.place
            path = f"{path}.{part}" if path else str(part)
        elif isinstance(found, Sequence) and isinstance(part, int) and part < len(found.items):
            found = found.items[part]
            place = found.place
            path = f"{path}[{part}]"
        elif isinstance(found, Mapping) and part is location[-1]:
            path = f"{path}.{part}" if path else str(part)
    return place, path, found
