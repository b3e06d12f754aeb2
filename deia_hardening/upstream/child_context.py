"""What a child process is told about a request, and how it knows that the word comes from its parent.

The fields travel in one header, signed by HMAC-SHA256 with a key that only parent and child share, over the
method and target too, so a line taken from one request is worth nothing on another. The child's side of it
(`verify`) is in `child_main.py`, which must run without this package.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import msgspec

from deia_hardening.context import SCOPE_KEY, RequestContext
from deia_hardening.types import Scope
from deia_hardening.upstream.request import CONTEXT_HEADER

_encode = msgspec.json.Encoder().encode
_b64 = base64.urlsafe_b64encode


@attrs.frozen
class ChildContext:
    """The request as the front sees it. `remaining` is seconds until the deadline; `flags` those read so
    far."""

    id: str = ""
    actor: dict[str, Any] = attrs.field(factory=dict)
    revision: int = 0
    mode: str = ""
    version: str = ""
    remaining: float | None = None
    flags: dict[str, Any] = attrs.field(factory=dict)


ContextSource: TypeAlias = Callable[[Scope], ChildContext | None]


@attrs.frozen
class ChildState:
    """What a child is told between requests: the settings revision, the mode, and the flags that hold for
    all."""

    revision: int = 0
    mode: str = "FULL"
    flags: dict[str, Any] = attrs.field(factory=dict)


def from_request(scope: Scope) -> ChildContext | None:
    """The default source: the request context that the core put on the scope, if there is one."""
    context = scope.get(SCOPE_KEY)
    if not isinstance(context, RequestContext):
        return None
    actor = context.actor
    return ChildContext(
        id=context.id,
        actor={
            "type": actor.type,
            "id": actor.id,
            "auth": actor.auth,
            "session": actor.session,
            "on_behalf_of": actor.on_behalf_of,
            "roles": sorted(actor.roles),
        },
        revision=context.revision.number,
        mode=context.mode.value,
        version=context.version,
        remaining=context.remaining(),
        flags=dict(context._features or ()),
    )


def line(key: bytes, scope: Scope, target: bytes, context: ChildContext | None) -> bytes:
    """The header line for one request: context, and client, scheme, path prefix as the front saw them.
    About 5 µs."""
    payload: dict[str, Any] = {"client": scope.get("client"), "scheme": scope.get("scheme", "http")}
    root_path = scope.get("root_path")
    if root_path:
        payload["root_path"] = root_path
    server = scope.get("server")
    if server:
        payload["server"] = server
    if context is not None:
        payload["context"] = {
            "id": context.id,
            "actor": context.actor,
            "revision": context.revision,
            "mode": context.mode,
            "version": context.version,
            "remaining": context.remaining,
            "flags": context.flags,
        }
    try:
        text = _b64(_encode(payload))
    except (TypeError, UnicodeEncodeError):  # a flag that JSON has no word for, a lone surrogate: leave them out
        payload["context"] = {**payload["context"], "flags": {}, "actor": {}} if context is not None else None
        payload.pop("root_path", None)
        text = _b64(_encode(payload))
    method = scope.get("method", "GET").encode("ascii", "replace")
    mac = hmac.digest(key, b"%b %b\n%b" % (method, target, text), "sha256")
    return b"%b: %b.%b" % (CONTEXT_HEADER, text, mac.hex().encode())
