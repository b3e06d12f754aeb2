"""What keeps the requests of one conversation together: the sticky key of a request.

Sources are tried in the order of the settings, the first that a request has wins. Everything that can be decided
when the settings are read is decided then; a request pays for one pass over its headers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qsl

from deia_hardening.plugin import RequestContext, Scope

Found = dict[bytes, bytes]
"""The request's header fields that somebody asked for."""

Source = Callable[[Scope, RequestContext, Found], "str | bytes | None"]

MOST_FIELDS = 100
"""Fields of a query string that are looked through for a key; one with more has none."""
LONGEST = 512
"""Bytes of a key that count: what a client sends beyond is cut off."""


def problem_of(text: str) -> str | None:
    """Why `text` is no source of a key, or None."""
    kind, _, rest = text.partition(":")
    if text in ("actor", "network") or (kind in ("header", "cookie", "query") and rest):
        return None
    if kind in ("header", "cookie", "query", "actor", "network") or not rest or "." not in kind:
        return f"{text!r} is no source of a key; write header:NAME, cookie:NAME, query:NAME, actor, network, pkg.mod:f"
    return None


def headers_of(sources: Iterable[str]) -> frozenset[bytes]:
    """The names of the header fields that these sources read."""
    names = set()
    for text in sources:
        kind, _, rest = text.partition(":")
        if kind == "header":
            names.add(rest.lower().encode("latin-1"))
        elif kind == "cookie":
            names.add(b"cookie")
    return frozenset(names)


def compile_source(text: str, *, ipv4: int = 24, ipv6: int = 48) -> Source:
    """One source as a function of the request; a resolver is imported now. Raises ImportError, AttributeError."""
    kind, _, rest = text.partition(":")
    if kind == "header":
        name = rest.lower().encode("latin-1")
        return lambda scope, context, found: found.get(name)
    if kind == "cookie":
        wanted = rest.encode("latin-1") + b"="
        return lambda scope, context, found: cookie(found.get(b"cookie"), wanted)
    if kind == "query":
        return lambda scope, context, found: query(scope, rest)
    if text == "actor":
        return lambda scope, context, found: context.actor.id or None
    if text == "network":
        return lambda scope, context, found: network_of(scope.get("client"), ipv4, ipv6)
    resolver = load(text)

    def resolve(scope: Scope, context: RequestContext, found: Found) -> str | bytes | None:
        value = resolver(scope)
        return value if value is None or isinstance(value, (str, bytes)) else str(value)

    return resolve


def load(text: str) -> Callable[..., Any]:
    """Import `pkg.mod:function`."""
    module, _, name = text.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{text} is no function")
    return found  # type: ignore[no-any-return]


def cookie(header: bytes | None, wanted: bytes) -> bytes | None:
    """The value of a cookie, `wanted` being its name and '='."""
    if header is None:
        return None
    for part in header.split(b";"):
        part = part.strip()
        if part.startswith(wanted):
            return part[len(wanted) :].strip(b'"') or None
    return None


def query(scope: Scope, name: str) -> str | None:
    """The first value of a query parameter."""
    raw: bytes = scope.get("query_string", b"")
    if not raw or name.encode() not in raw:
        return None
    try:
        pairs = parse_qsl(raw.decode("latin-1"), max_num_fields=MOST_FIELDS)
    except ValueError:
        return None
    for key, value in pairs:
        if key == name:
            return value or None
    return None


def network_of(client: Any, ipv4: int, ipv6: int) -> str | None:
    """The network prefix of a client's address, or None when there is none (a Unix socket)."""
    return _prefix(client[0], ipv4, ipv6) if client else None


@lru_cache(maxsize=4096)
def _prefix(host: str, ipv4: int, ipv6: int) -> str | None:
    try:
        address = ip_address(host)
    except ValueError:
        return host[:64] or None
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return str(ip_network((address, ipv4 if address.version == 4 else ipv6), strict=False))


def pick(scope: Scope, wanted: frozenset[bytes]) -> Found:
    """The wanted header fields of a request, the first of each name; cookies may come in several fields (HTTP/2)."""
    found: Found = {}
    for name, value in scope["headers"]:
        if name in wanted:
            if name not in found:
                found[name] = value[:LONGEST] if name != b"cookie" else value
            elif name == b"cookie":
                found[name] += b"; " + value
    return found


def compile_key(sources: Iterable[str], *, ipv4: int = 24, ipv6: int = 48) -> Source:
    """The first key that a request has; a resolver that fails gives none (the request goes by blocks)."""
    compiled = tuple(compile_source(text, ipv4=ipv4, ipv6=ipv6) for text in sources)

    def key(scope: Scope, context: RequestContext, found: Found) -> str | bytes | None:
        for source in compiled:
            try:
                value = source(scope, context, found)
            except Exception:  # noqa: S112 - the team's resolver: its bug must not fail a request
                continue
            if value:
                return value[:LONGEST]
        return None

    return key
