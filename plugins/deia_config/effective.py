"""The effective values of a running revision as plain data, secrets masked."""

from __future__ import annotations

from typing import Any

from deia_config.history import flatten, nest
from deia_hardening.plugin import Problem
from deia_hardening.settings.nodes import Scalar, leaves
from deia_hardening.settings.plain import restart_values, to_plain
from deia_hardening.settings.secrecy import refers, without_secrets


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
    for key, node in leaves(document.root, lists=True):
        if isinstance(node, Scalar) and refers(node.value):
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
    """Where a value comes from, the winner first, then what it shadows; or its default. Redacted."""
    values = effective(revision)
    below = [known for known in values if known == key or known.startswith((f"{key}.", f"{key}["))]
    node = revision.document.find(key)
    if not below and node is None:
        raise Problem(404, f"there is no setting {key!r}; `config show` lists them")
    name, *path = key.replace("[", ".").replace("]", "").split(".")
    kind = type(sections_of(revision).get(name))
    told: list[tuple[str, Any]] = []
    for each in () if node is None else (node, *node.beneath):
        told.append((str(each.place), without_secrets(each, kind, tuple(path))))
    if not told:
        told.append(("<default>", values.get(key, nest({known: values[known] for known in below}))))
    return told
