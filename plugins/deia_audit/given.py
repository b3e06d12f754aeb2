"""What code gives to `record`, as what a record holds: texts, a target, changes, whatever was given instead of them.

Pure. A slip in the code that records must not fail the call that is recorded: what is given wrongly is kept as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deia_hardening.plugin import Actor, Target

_ACTOR = ("type", "id", "auth", "session", "on_behalf_of")


def said(value: Any) -> str:
    """Return a value as text; one that can't be told is told by its type."""
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception:
        return f"({type(value).__qualname__})"


def target_of(value: Any) -> dict[str, str]:
    """Return a target's type and id; what is no such pair becomes the id of type `unknown`."""
    if isinstance(value, Target):
        return {"type": value.type, "id": value.id}
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return {"type": said(value[0]), "id": said(value[1])}
    return {"type": "unknown", "id": said(value)}


def change_of(value: Any) -> dict[str, list[Any]]:
    """Return field to [old, new]; what is given without an old value is new."""
    if not isinstance(value, Mapping):
        return {"value": [None, value]}
    return {
        said(name): list(pair) if isinstance(pair, (tuple, list)) and len(pair) == 2 else [None, pair]
        for name, pair in value.items()
    }


def call_of(value: Any) -> dict[str, Any]:
    """Return what is told of a tool's or a model's call; a bare text is its name."""
    return dict(value) if isinstance(value, Mapping) else {"name": said(value)}


def actor_of(value: Any) -> Actor:
    """Return an actor; what is none becomes the id of one of type `unknown`."""
    if all(isinstance(getattr(value, name, None), str) for name in _ACTOR):
        return value  # type: ignore[no-any-return]  # the app's own kind of one may do as well
    return Actor("unknown", said(value))
