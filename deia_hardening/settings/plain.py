"""Typed settings back to plain data for showing, hashing and comparing; secrets never come along."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import math
import re
import uuid
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import attrs

from deia_hardening.settings.fields import Secret, spec_of
from deia_hardening.settings.units import Bytes, Ratio, Seconds

MASK = "***"


_unit_text = lru_cache(maxsize=4096, typed=True)(str)  # finding the shortest text takes 50 µs; the same defaults recur


_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*@")
_SHOWN = (
    datetime.date, datetime.time, uuid.UUID, decimal.Decimal, complex,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
    ipaddress.IPv4Interface, ipaddress.IPv6Interface,
)  # fmt: skip
"""What shows itself by `str`. A datetime is a date."""


def to_plain(value: Any, key: str, hidden: dict[str, str], opaque: list[str] | None = None) -> Any:
    """JSON-ready data. `hidden` maps key paths to what is shown in their place.

    What can't be shown stands there as `<Type>`, and its repr is added to `opaque`, which is for comparing only.
    """
    if key in hidden:
        return hidden[key]
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, (Seconds, Bytes, Ratio)):
        return _unit_text(value)
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name.lower()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_key(name): to_plain(item, f"{key}.{_key(name)}", hidden, opaque) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{key}[{index}]", hidden, opaque) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item, key, hidden, opaque) for item in value), key=repr)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return str(Seconds(value.total_seconds()))
    members = _members(value)
    if members is not None:
        return {
            name: MASK
            if secret and item is not None and f"{key}.{name}" not in hidden
            else to_plain(item, f"{key}.{name}", hidden, opaque)
            for name, item, secret, _ in members
        }
    text = _shown(value)
    if opaque is not None and (text is None or MASK in text) and " at 0x" not in (told := repr(value)):
        opaque.append(f"{key}={told}")
    return f"<{type(value).__name__}>" if text is None else text


def _shown(value: Any) -> str | None:
    if isinstance(value, _SHOWN):
        return str(value)
    if isinstance(value, re.Pattern):
        return str(value.pattern)
    if type(value).__module__.startswith("pydantic") and "://" in (text := str(value)):
        return _PASSWORD.sub(rf"\1:{MASK}@", text)
    return None


def restart_values(value: Any, key: str, hidden: dict[str, str], into: dict[str, Any]) -> None:
    """Collect the values of fields marked `restart`, redacted, by key."""
    for name, item, secret, restart in _members(value) or ():
        inner = f"{key}.{name}"
        if restart:
            into[inner] = MASK if secret else to_plain(item, inner, hidden)
        else:
            restart_values(item, inner, hidden, into)


def _members(value: Any) -> list[tuple[str, Any, bool, bool]] | None:
    """(key, value, secret, restart) of a class's fields, or None for what has none."""
    kind = type(value)
    if attrs.has(kind):
        found = []
        for field in attrs.fields(kind):
            if field.init:
                spec = spec_of(field.metadata)
                found.append((field.alias or field.name, getattr(value, field.name), spec.secret, spec.restart))
        return found
    described = getattr(kind, "__dataclass_fields__", None)
    if described is not None:
        found = []
        for name, field in described.items():
            spec = spec_of(field.metadata)
            found.append((name, getattr(value, name), spec.secret, spec.restart))
        return found
    if hasattr(kind, "model_fields"):
        found = []
        for name, field in kind.model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            item = getattr(value, name)
            secret = bool(extra.get("secret")) or hasattr(item, "get_secret_value")
            alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
            found.append((alias or name, item, secret, bool(extra.get("restart"))))
        return found
    return None


def _key(name: Any) -> str:
    return str(name.value) if isinstance(name, enum.Enum) else str(name)
