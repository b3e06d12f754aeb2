"""Flags in flagd's file format, compiled: an evaluation is a dictionary look-up and a few closure calls.

Sources: flagd.dev/reference/flag-definitions and the in-process provider specification. A `FlagSet` is never
changed; a reload makes a new one.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from typing import Any

import attrs

from deia_config.flags.logic import Exit, Rule


class Reason(enum.StrEnum):
    """Why a flag has its value (OpenFeature specification, section 1.4.7)."""

    STATIC = "STATIC"
    DEFAULT = "DEFAULT"
    TARGETING_MATCH = "TARGETING_MATCH"
    DISABLED = "DISABLED"
    ERROR = "ERROR"


class ErrorCode(enum.StrEnum):
    """What went wrong (OpenFeature specification, section 1.4.8)."""

    FLAG_NOT_FOUND = "FLAG_NOT_FOUND"
    PARSE_ERROR = "PARSE_ERROR"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    GENERAL = "GENERAL"


_NOTHING: MappingType[str, Any] = {}


@attrs.frozen
class Resolution:
    """The outcome of one evaluation. `value` is the caller's default where nothing else applies."""

    value: Any
    variant: str | None = None
    reason: Reason = Reason.STATIC
    error_code: ErrorCode | None = None
    error_message: str = ""
    metadata: MappingType[str, Any] = _NOTHING


@attrs.frozen(eq=False)
class Flag:
    """One compiled flag. `identity` is the definition's text: two flags with the same one are the same."""

    key: str
    enabled: bool
    variants: MappingType[str, Any]
    default: str | None
    rule: Rule | None
    metadata: MappingType[str, Any]
    identity: str
    broken: str = ""
    uses_flagd: bool = True


@attrs.frozen(eq=False)
class FlagSet:
    """All flags of one load."""

    flags: MappingType[str, Flag] = attrs.field(factory=dict)
    metadata: MappingType[str, Any] = attrs.field(factory=dict)
    digest: str = ""
    _now: Callable[[], float] = time.time

    def value(self, name: str, default: Any, key: str | None, attributes: MappingType[str, Any]) -> Any:
        """The value for a handler: never raises; `default` where there is no such flag, or anything is wrong."""
        flag = self.flags.get(name)
        if flag is None or not flag.enabled or flag.broken:
            return default
        rule = flag.rule
        chosen = flag.default
        if rule is not None:
            data = dict(attributes)
            if key is not None:
                data["targetingKey"] = key
            if flag.uses_flagd:
                data["$flagd"] = {"flagKey": name, "timestamp": int(self._now())}
            try:
                found = rule(data)
            except Exit:
                found = None
            except Exception:
                return default
            if found is not None:
                chosen = _variant_name(found)
                if chosen not in flag.variants:
                    return default
        return default if chosen is None else flag.variants[chosen]

    def resolve(self, name: str, default: Any, context: MappingType[str, Any]) -> Resolution:
        """The value with its variant, reason and error, as flagd's in-process providers give it."""
        flag = self.flags.get(name)
        if flag is None:
            return _error(default, ErrorCode.FLAG_NOT_FOUND, f"flag {name} not found", self.metadata)
        metadata = flag.metadata
        if not flag.enabled:
            return Resolution(default, None, Reason.DISABLED, metadata=metadata)
        if flag.broken:
            return _error(default, ErrorCode.PARSE_ERROR, flag.broken, metadata)
        if flag.rule is None:
            if flag.default is None:
                return Resolution(default, None, Reason.DEFAULT, metadata=metadata)
            return Resolution(flag.variants[flag.default], flag.default, Reason.STATIC, metadata=metadata)
        data = dict(context)
        data["$flagd"] = {"flagKey": name, "timestamp": int(self._now())}
        try:
            found = flag.rule(data)
        except Exit:
            found = None
        except Exception as error:
            return _error(default, ErrorCode.PARSE_ERROR, f"the rule failed: {type(error).__name__}", metadata)
        if found is None:
            if flag.default is None:
                return Resolution(default, None, Reason.DEFAULT, metadata=metadata)
            return Resolution(flag.variants[flag.default], flag.default, Reason.DEFAULT, metadata=metadata)
        chosen = _variant_name(found)
        if chosen not in flag.variants:
            return _error(default, ErrorCode.GENERAL, f"the rule chose {chosen[:80]!r}, which is no variant", metadata)
        return Resolution(flag.variants[chosen], chosen, Reason.TARGETING_MATCH, metadata=metadata)

    def changed(self, newer: FlagSet) -> tuple[str, ...]:
        """The keys of flags that were added, removed or altered in `newer`."""
        keys = {*self.flags, *newer.flags}
        return tuple(sorted(key for key in keys if _identity(self, key) != _identity(newer, key)))


def _identity(flags: FlagSet, key: str) -> str | None:
    flag = flags.flags.get(key)
    return None if flag is None else flag.identity


def _variant_name(found: Any) -> str:
    if isinstance(found, str):
        return found
    if found is True:
        return "true"
    if found is False:
        return "false"
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    return str(found)


def _error(default: Any, code: ErrorCode, message: str, metadata: MappingType[str, Any]) -> Resolution:
    return Resolution(default, None, Reason.ERROR, code, message, metadata)
