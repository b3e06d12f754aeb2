"""Who is asking: what is believed of a request's own word, and from whom.

A forwarding header, a request id, a deadline or an actor is believed only from a trusted proxy; from everybody
else it is cut, bounded and kept as a claim. Behind a trusted proxy the scope's `client` and `scheme` become the
client's own, for the app and every plugin. The client's address is found right to left: the last hop that is not
trusted is the client (a server that believes the left-most value believes what a client sent).
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

from deia_hardening.context import SCOPE_KEY, Actor, RequestContext
from deia_hardening.errors import HardeningError, SettingsError
from deia_hardening.settings import Seconds
from deia_hardening.types import Scope

if TYPE_CHECKING:
    from deia_hardening.sections import RequestsSettings

logger = logging.getLogger("deia_hardening")

UNIX: Final = "unix"
"""The trusted proxy that connects by a Unix socket: such a peer has no address."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]
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
    if not module or not path or module.startswith("."):
        raise SettingsError(f"{text!r} is not an import string; write 'pkg.mod:name'")
    try:
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except HardeningError:  # the module hardens an app
        raise
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"cannot import {text!r}: {error}") from error
    except Exception as error:
        raise SettingsError(f"cannot import {text!r}: {type(error).__name__}: {error}") from error
    return found


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses, networks and `unix`; raises SettingsError naming the wrong one."""
    try:
        return tuple(UNIX if text == UNIX else _network(text) for text in texts)
    except ValueError as error:
        raise SettingsError(f"{error}; write an address, a network as '10.0.0.0/8', or 'unix'") from error


def _network(text: str) -> Network:
    """A network; one of IPv4 inside IPv6 (as a server that listens on both shows its peers) as that of IPv4."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        inside = network.network_address.ipv4_mapped
        if inside is not None:
            return ipaddress.IPv4Network((inside, network.prefixlen - 96))
    return network


def is_trusted(address: str, networks: Sequence[Network]) -> bool:
    """Whether the textual address lies in one of the networks; a name does not. No address is a Unix socket's."""
    if not address:
        return UNIX in networks
    try:
        parsed = _parse(address)
    except ValueError:
        return False
    return any(network != UNIX and parsed in network for network in networks)


def peer_of(scope: Scope) -> str:
    """The address of the connection's other end as the server tells it; "" for a Unix socket."""
    client = scope.get("client")
    return str(client[0] or "") if client else ""


def client_address(scope: Scope, networks: Sequence[Network]) -> str:
    """The client's address: the peer's, or behind trusted proxies the last hop that is not one of them."""
    peer = peer_of(scope)
    if not is_trusted(peer, networks):
        return peer
    hops = [
        hop
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
    ]
    for hop in reversed(hops):
        try:
            address = str(_parse(_without_port(hop.strip())))
        except ValueError:
            return peer  # a hop that is no address: nothing to the left of it can be believed
        peer = address
        if not is_trusted(address, networks):
            break
    return peer


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address in one form: no zone (it may be any text), IPv4 inside IPv6 as IPv4. Raises ValueError."""
    parsed = ipaddress.ip_address(text.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _without_port(hop: str) -> str:
    """A hop without the port that some proxies add: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    host, colon, port = hop.rpartition(":")
    if hop.startswith("["):
        return (hop if hop.endswith("]") else host if port.isascii() and port.isdigit() else "")[1:-1]
    return host if colon and ":" not in host and port.isascii() and port.isdigit() else hop


def _scheme(scope: Scope) -> str | None:
    """The scheme that a trusted proxy names, in the scope's own kind; None unless it names exactly one."""
    found = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
    text = found[0].strip().lower() if len(found) == 1 else b""
    if text not in (b"http", b"https", b"ws", b"wss"):
        return None
    secure = text in (b"https", b"wss")
    if scope["type"] == "websocket":
        return "wss" if secure else "ws"
    return "https" if secure else "http"


def claims(scope: Scope, limit: int) -> dict[str, str]:
    """What the peer says of itself: a few known headers, each cut to `limit` characters."""
    found: dict[str, str] = {}
    for name, value in scope.get("headers", ()):
        if name in _CLAIMED:
            found.setdefault(name.decode("latin-1"), value[:limit].decode("latin-1"))
    return found


def _imported_resolver(text: str) -> Callable[[Scope], Actor | None]:
    try:
        found = import_string(text)
    except SettingsError as error:
        raise SettingsError(f"requests.actor: {error.problems[0].message}") from error
    if not callable(found):
        raise SettingsError(f"requests.actor: {text!r} is no function but {type(found).__name__}")
    resolve: Callable[[Scope], Actor | None] = found
    return resolve


def _header_resolver(header: bytes) -> Callable[[Scope], Actor | None]:
    def resolve(scope: Scope) -> Actor | None:
        context = scope.get(SCOPE_KEY)
        if context is None or not context.trusted:
            return None
        found = [value for name, value in scope["headers"] if name == header]
        if len(found) != 1 or not found[0]:  # twice: the proxy added its own to what a client had sent
            return None
        return Actor(type="user", id=found[0][:256].decode("latin-1"), auth=f"header:{header.decode()}")

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
            resolvers.append(_header_resolver(name.lower().encode("latin-1")))
        else:
            resolvers.append(_imported_resolver(text))
    if not networks and not resolvers:
        return None
    id_header = settings.request_id_header.lower().encode("latin-1")
    deadline_header = settings.deadline_header.lower().encode("latin-1")
    limit = int(settings.claim_limit)

    def identify(context: RequestContext) -> None:
        scope = context.scope
        if networks and is_trusted(peer := peer_of(scope), networks):
            context.trusted = True
            address = client_address(scope, networks)
            if address != peer:
                scope["client"] = (address, 0)  # as servers do that handle this themselves
            scheme = _scheme(scope)
            if scheme is not None:
                scope["scheme"] = scheme
            ids = 0
            for name, value in scope["headers"]:
                if name == id_header:
                    text = value[:limit].decode("latin-1")
                    ids += 1
                    context._id = text if ids == 1 and text.isprintable() and text else None
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
