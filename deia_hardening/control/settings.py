"""The `control:` section. All of it is security policy, so all of it is file-only."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import attrs

from deia_hardening.settings import Bytes, Seconds, setting


@attrs.frozen
class ControlSettings:
    """Where the control plane answers, who may use it, and its limits."""

    prefix: str = setting(
        "/deia", "path that all of the control plane's routes begin with", ge=2, le=64, file_only=True
    )
    on_app: str = setting(
        "probes",
        "what the app's own port answers: `probes` (livez, readyz), `read` (and what changes nothing), `full`",
        choices=("probes", "read", "full"),
        file_only=True,
    )
    socket: bool = setting(True, "serve the socket in the home's run folder, for the command line", file_only=True)
    listen: str = setting(
        "", "an address of its own, as `127.0.0.1:8444` or `[::1]:8444`", le=262, file_only=True, restart=True
    )
    console: bool = setting(True, "serve the console, a page for people, at `listen`", file_only=True)
    hosts: tuple[str, ...] = setting(
        (), "names that a browser may reach `listen` by, besides its address and localhost", le=64, file_only=True
    )
    tls_certificate: str = setting("", "PEM file of the certificate chain for `listen`", file_only=True, restart=True)
    tls_key: str = setting("", "PEM file of the private key for `listen`", file_only=True, restart=True)
    maintenance_ready: bool = setting(
        True,
        "whether readyz stays ready in MAINTENANCE, where the service answers its prepared replies",
        file_only=True,
    )
    bootstrap_token: bool = setting(
        True, "make a first token, in keys/bootstrap-token, when there is no valid one", file_only=True
    )
    bootstrap_ttl: Seconds = setting(Seconds("24h"), "how long the first token is valid", ge=60, file_only=True)
    token_ttl: Seconds = setting(
        Seconds("90d"), "how long a token is valid unless it says so itself", ge=60, file_only=True
    )
    rotation_grace: Seconds = setting(
        Seconds("15m"), "how long the old secret of a rotated token still works", ge=0, file_only=True
    )
    token_refresh: Seconds = setting(
        Seconds("5s"), "longest time until a token revoked on another machine stops working", ge=0.1, file_only=True
    )
    max_tokens: int = setting(256, "tokens that may exist at once", ge=1, le=10_000, file_only=True)
    session_ttl: Seconds = setting(Seconds("8h"), "how long a browser's session lasts", ge=60, file_only=True)
    failed_tries: int = setting(10, "wrong tokens that one address may try in `failed_window`", ge=1, file_only=True)
    failed_window: Seconds = setting(Seconds("1m"), "see `failed_tries`", ge=1, file_only=True)
    max_connections: int = setting(64, "connections to the socket, and to `listen`, at once", ge=1, file_only=True)
    max_head: Bytes = setting(Bytes("16KiB"), "longest request line and headers together", ge=1024, file_only=True)
    max_body: Bytes = setting(Bytes("1MiB"), "longest request body", ge=1024, file_only=True)
    read_timeout: Seconds = setting(
        Seconds("10s"), "how long a client may take to send a request", ge=0.1, file_only=True
    )
    idle_timeout: Seconds = setting(Seconds("30s"), "how long an idle connection stays open", ge=0.1, file_only=True)
    keep_alive: Seconds = setting(
        Seconds("15s"), "pause between signs of life on a silent stream", ge=0.1, file_only=True
    )
    otel: bool = setting(
        False, "hand all metrics to the OpenTelemetry SDK that the service has set up (extra `otel`)", file_only=True
    )
    takeover_interval: Seconds = setting(
        Seconds("1s"), "how often a worker tries to take over the socket of one that died", ge=0.01, file_only=True
    )

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        if not self.prefix.startswith("/") or self.prefix.endswith("/") or not _plain_path(self.prefix):
            yield "prefix", "must be a path as '/deia': letters, digits, '-', '_' and '/' only, no '/' at the end"
        if bool(self.tls_certificate) != bool(self.tls_key):
            yield "tls_key", "tls_certificate and tls_key go together"
        if self.listen:
            try:
                host, _ = parse_address(self.listen)
            except ValueError as error:
                yield "listen", str(error)
            else:
                if not is_loopback(host) and not self.tls_certificate:
                    yield "listen", f"{host} is reachable by others: that needs tls_certificate and tls_key"


def _plain_path(text: str) -> bool:
    return "//" not in text and all(
        character.isascii() and (character.isalnum() or character in "-_/") for character in text
    )


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`. Raises ValueError that says what is wrong. Pure."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as '[::1]:8444'")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no address; write it as '127.0.0.1:8444'")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost counts as reachable. Pure."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
