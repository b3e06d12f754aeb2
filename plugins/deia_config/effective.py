"""The effective values of a running revision as plain data, secrets masked."""

from __future__ import annotations

import contextlib
from typing import Any

from deia_config.history import flatten, nest
from deia_hardening.plugin import Problem
from deia_hardening.settings.classes import fields_of
from deia_hardening.settings.nodes import Scalar, leaves
from deia_hardening.settings.plain import restart_values, to_plain
from deia_hardening.settings.structure import is_settings_class


def sections_of(revision: Any) -> dict[str, Any]:
    """Every section's settings object by name: plugins', the core's, the app's own as `app`."""
    found: dict[str, Any] = dict(revision.sections)
    known = {id(value) for value in found.values()}
    for kind, value in revision.settings.items():
        if id(value) in known:
            continue
        if kind.__module__.startswith("deia_hardening."):
            found[kind.__name__.removesuffix("Settings").lower()] = value
        else:
            found["app"] = value
    return found


def effective(revision: Any) -> dict[str, Any]:
    """Every effective value by dotted key, defaults included; secrets as their reference or `***`."""
    hidden = references(revision.document)
    plain = {name: to_plain(value, name, hidden) for name, value in sections_of(revision).items()}
    return flatten(plain)


def references(document: Any) -> dict[str, str]:
    """Where the document has a `${…}` reference, by key: shown instead of what it stands for."""
    found: dict[str, str] = {}
    if document is None:
        return found
    for key, node in leaves(document.root):
        if isinstance(node, Scalar) and isinstance(node.value, str) and "${" in node.value:
            found[key] = node.value
    return found


def restart_only(revision: Any) -> dict[str, Any]:
    """The values that only the next start takes up, by key, secrets masked."""
    found: dict[str, Any] = {}
    hidden = references(revision.document)
    for name, value in sections_of(revision).items():
        restart_values(value, name, hidden, found)
    return found


def blame(revision: Any, key: str) -> list[tuple[str, Any]]:
    """Where a value comes from, the winner first, then what it shadows; at last its default. Redacted."""
    values = effective(revision)
    below = [known for known in values if known == key or known.startswith((f"{key}.", f"{key}["))]
    if not below:
        raise Problem(404, f"there is no setting {key!r}; `config show` lists them")
    masked = values.get(key) == "***" or is_secret(revision, key)
    told: list[tuple[str, Any]] = []
    for place, value in revision.document.blame(key):
        reference = isinstance(value, str) and "${" in value
        told.append((str(place), "***" if masked and value is not None and not reference else value))
    if not told:
        told.append(("<default>", values.get(key, nest({known: values[known] for known in below}))))
    return told


def is_secret(revision: Any, key: str) -> bool:
    """Whether the setting, or something that it stands in, is secret."""
    name, *path = key.split(".")
    value: Any = sections_of(revision).get(name)
    for part in path:
        if not is_settings_class(type(value)):
            return False
        with contextlib.suppress(Exception):
            known = fields_of(type(value)).get(part)
            if known is not None and known.spec.secret:
                return True
        if hasattr(getattr(value, part, None), "get_secret_value"):
            return True
        value = getattr(value, part, None)
    return False
