"""Who is asking: what is believed of a request's own word, and from whom.

A forwarding header, a request id, a deadline or an actor is believed only from a trusted proxy; from everybody
else it is cut, bounded and kept as a claim. The client's address is found right to left: the last hop that is not
trusted is the client (a server that believes the left-most value believes what a client sent).
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from deia_hardening.context import Actor, RequestContext
from deia_hardening.errors import SettingsError
from deia_hardening.sections import RequestsSettings
from deia_hardening.settings import Seconds
from deia_hardening.types import Scope

logger = logging.getLogger("deia_hardening")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Identify = Callable[[RequestContext], None]

_CLAIMED = frozenset(
    (
        b"x-request-id", b"x-request-timeout", b"x-forwarded-for", b"traceparent", b"x-actor", b"x-priority",
        b"x-criticality", b"user-agent",
    )
)  # fmt: skip


def import_string(text: str) -> Any:
    """Import `pkg.mod:name.attr`. Raises SettingsError that says which part is missing."""
    module, _, path = text.partition(":")
    if not module or not path:
        raise SettingsError(f"{text!r} is not an import string; write 'pkg.mod:name'")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"cannot import {text!r}: {error}") from error
    return found


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses and networks; raises SettingsError naming the wrong one."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise SettingsError(f"requests.trusted_proxies: {error}") from error


def is_trusted(address: str, networks: Sequence[Network]) -> bool:
    """Whether the textual address lies in one of the networks; a name or an empty text does not."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)


def client_address(scope: Scope, networks: Sequence[Network]) -> str:
    """The client's address: the peer's, or behind trusted proxies the last hop that is not one of them."""
    client = scope.get("client")
    peer = client[0] if client else ""
    if not is_trusted(peer, networks):
        return str(peer)
    hops = [
        hop.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
    ]
    for hop in reversed(hops):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            return str(peer)  # a hop that is no address: nothing to the left of it can be believed
        peer = hop
        if not is_trusted(hop, networks):
            break
    return str(peer)


def claims(scope: Scope, limit: int) -> dict[str, str]:
    """What the peer says of itself: a few known headers, each cut to `limit` characters."""
    found: dict[str, str] = {}
    for name, value in scope.get("headers", ()):
        if name in _CLAIMED:
            found.setdefault(name.decode("latin-1"), value[:limit].decode("latin-1"))
    return found


def _header_resolver(header: bytes, networks: Sequence[Network]) -> Callable[[Scope], Actor | None]:
    def resolve(scope: Scope) -> Actor | None:
        client = scope.get("client")
        if client and is_trusted(client[0], networks):
            for name, value in scope["headers"]:
                if name == header:
                    return Actor(type="user", id=value[:256].decode("latin-1"), auth=f"header:{header.decode()}")
        return None

    return resolve


def build_identify(settings: RequestsSettings) -> Identify | None:
    """The function that fills in a request's context before the chain, or None where nothing is to be done."""
    parse_networks(settings.trusted_proxies)  # a wrong one is told, whether it counts or not
    if settings.trusted_proxies and not settings.believed_proxies:
        logger.warning(
            "requests.trusted_proxies grants nothing: the server may have taken the client's address from a header. "
            "Turn its own proxy handling off (uvicorn --no-proxy-headers) and set requests.client_address: verified, "
            "or start the service with `deia-hardening run`"
        )
    networks = parse_networks(settings.believed_proxies)
    resolvers: list[Callable[[Scope], Actor | None]] = []
    for text in settings.actor:
        kind, _, name = text.partition(":")
        if kind == "header" and name:
            resolvers.append(_header_resolver(name.lower().encode("latin-1"), networks))
        else:
            resolvers.append(import_string(text))
    if not networks and not resolvers:
        return None
    id_header = settings.request_id_header.lower().encode("latin-1")
    deadline_header = settings.deadline_header.lower().encode("latin-1")
    limit = int(settings.claim_limit)

    def identify(context: RequestContext) -> None:
        scope = context.scope
        client = scope.get("client")
        if networks and client and is_trusted(client[0], networks):
            for name, value in scope["headers"]:
                if name == id_header:
                    text = value[:limit].decode("latin-1")
                    if text.isprintable() and text:
                        context._id = text
                elif name == deadline_header:
                    try:
                        context.deadline = time.monotonic() + Seconds(value[:32].decode("latin-1"))
                    except ValueError:
                        pass  # not a duration: no deadline
        for resolve in resolvers:
            actor = resolve(scope)
            if actor is not None:
                context.actor = actor
                break

    return identify
