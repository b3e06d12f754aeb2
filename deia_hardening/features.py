"""Feature flags as handlers read them: `feature("scaling", default=True)`.

The value comes from the config plugin's flags, else it is the default; then masks (degradation's) may only turn a
boolean off or a variant to its default. A flag stays as first read for the whole of a request. With no hardened app,
or with those plugins off, the default comes back, so a handler needs no `if`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from deia_hardening.access import live_services
from deia_hardening.context import RequestContext, context_variable
from deia_hardening.services import Services

V = TypeVar("V")
_UNREAD: Any = object()


def evaluate(services: Services, context: RequestContext | None, name: str, default: Any, key: str | None) -> Any:
    """The value of flag `name` for `key`, masks applied; `default` when nobody knows it."""
    value = default
    source = services.source
    if source is not None:
        attributes: dict[str, Any] = {}
        if context is not None:
            actor = context.actor
            if key is None:
                key = actor.id or None
            attributes = {"actor": actor.id, "actor_type": actor.type, "route": context.scope.get("path", "")}
        value = source.evaluate(name, default, key, attributes)
        if type(value) is not type(default) and default is not None:
            value = _number_like(default, value)
    for mask in services.masks:
        if mask.masked(name):
            return False if isinstance(default, bool) else default
    return value


def _number_like(default: Any, value: Any) -> Any:
    """A number as `default`'s type where it loses nothing (a file says 1 and means 1.0), else `default`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    if type(default) is float and abs(value) <= 2**53:
        return float(value)
    return int(value) if type(default) is int and value == value // 1 else default


def _read(name: str, default: Any, key: str | None) -> Any:
    context = context_variable.get()
    if context is None:
        services = live_services()
        return default if services is None else evaluate(services, None, name, default, key)
    frozen = context._features
    if frozen is None:
        frozen = context._features = {}
    mark: Any = name if key is None else (name, key)
    value = frozen.get(mark, _UNREAD)
    if value is _UNREAD:
        value = frozen[mark] = evaluate(context.revision.services, context, name, default, key)
    return value


def feature(name: str, *, default: bool, key: str | None = None) -> bool:
    """Whether feature `name` is on. `key` (else the actor's id) decides percentage rollouts. Never raises."""
    return bool(_read(name, default, key))


def variant(name: str, *, default: V, key: str | None = None) -> V:
    """The value of variant flag `name`, of `default`'s type, else `default`. Never raises."""
    return _read(name, default, key)  # type: ignore[no-any-return]
