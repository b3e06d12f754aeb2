"""Where an outgoing connection may lead: allow-list, one look-up, and no way to the metadata services.

A name is resolved once, every address it gives is judged, and the connection goes to an address that was
judged, so a name that changes its mind between check and use gains nothing (DNS rebinding). Loopback and
private networks are allowed, since that is where bots live; link-local, metadata, multicast and unspecified
addresses never are.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, GCP, and most others (link-local, refused anyway)
        "169.254.170.2",  # AWS ECS task credentials
        "fd20:ce::254",  # GCP by IPv6
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host agent
        "192.0.0.192",  # Oracle
    )
)
_AWS = ipaddress.ip_network("fd00:ec2::/32")  # all of AWS's instance services by IPv6: metadata, pod identity, …
METADATA_NAMES = frozenset(("metadata.google.internal", "metadata", "instance-data", "metadata.goog"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215: how long the prefix is, is its operator's choice


class AddressRefused(OSError):  # noqa: N818 - a verdict
    """An address that may not be connected to. Nothing was sent."""


@attrs.frozen
class Address:
    """One place to connect to: socket family and its address. Put together from a judged address."""

    family: int
    sockaddr: Any


def unix(path: str) -> Address:
    """The address of a Unix socket."""
    return Address(socket.AF_UNIX, path)


def judge(address: IPAddress) -> str:
    """Why `address` must not be connected to, or "". Embedded IPv4 addresses are judged too. Pure."""
    if isinstance(address, ipaddress.IPv6Address):
        for embedded in _embedded(address):
            why = judge(embedded)
            if why:
                return why
        if address in _NAT64 or address in _LOCAL_NAT64:  # all there is by name in a network of IPv6 only (DNS64)
            return ""
    if address in METADATA or address in _AWS:
        return "the address of a cloud metadata service"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_reserved and not address.is_loopback:
        return "a reserved address"
    return ""


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address may lead to by mapping, tunnel or translation (RFC 6052). Pure."""
    found = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if found is not None:
        return [found]
    bits = int(address)
    if address in _NAT64:
        return [ipaddress.IPv4Address(bits & 0xFFFFFFFF)]
    if address not in _LOCAL_NAT64:
        return []
    # Prefixes of 96, 64, 56 and 48 bits; the octet after the first 64 bits is skipped. What none of them uses is zero.
    octets = address.packed
    rows = (octets[12:], octets[9:13], octets[7:8] + octets[9:12], octets[6:8] + octets[9:11])
    return [ipaddress.IPv4Address(row) for row in rows if any(row)]


def allowed_host(host: str, allow: Sequence[str]) -> bool:
    """Whether `allow` (names, `*.domain`, networks) has room for the host of a target. Empty allows any.
    Pure."""
    if not allow:
        return True
    name = host.rstrip(".").lower()
    literal = _literal(name)
    for entry in allow:
        pattern = entry.strip().lower().rstrip(".")
        if literal is not None:
            try:
                if literal in ipaddress.ip_network(pattern, strict=False):
                    return True
            except ValueError:
                continue
        elif pattern.startswith("*."):
            if name.endswith(pattern[1:]) and len(name) > len(pattern) - 1:
                return True
        elif name == pattern:
            return True
    return False


def choose(host: str, found: Iterable[str], allow: Sequence[str]) -> list[IPAddress]:
    """The addresses among `found` that a connection to `host` may use. Raises AddressRefused with the
    reasons. Pure.

    One refused address refuses them all: a name that leads to a metadata service also leads nowhere else.
    """
    if not allowed_host(host, allow):
        raise AddressRefused(f"{host} is not in the allow-list")
    if host.rstrip(".").lower() in METADATA_NAMES:
        raise AddressRefused(f"{host} is the name of a cloud metadata service")
    addresses: list[IPAddress] = []
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        why = judge(address)
        if why:
            raise AddressRefused(f"{host} leads to {address}, {why}")
        if address not in addresses:
            addresses.append(address)
    if not addresses:
        raise AddressRefused(f"{host} has no address")
    return addresses


def resolve(host: str, port: int, allow: Sequence[str] = ()) -> list[Address]:
    """Look `host` up, once, and judge what comes. Blocks: call it on a core-owned thread.

    Raises AddressRefused, or socket.gaierror where there is no such name.
    """
    literal = _literal(host)
    if literal is not None:
        texts = [str(literal)]
    else:
        if not allowed_host(host, allow):  # no look-up for what is refused anyway
            raise AddressRefused(f"{host} is not in the allow-list")
        texts = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    return [
        Address(socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6, (str(address), port))
        for address in choose(host, texts, allow)
    ]


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
