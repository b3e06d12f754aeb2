"""The core's own settings sections that no other package owns: `requests:`.

`journal:` and `store:` are declared by those packages, `control:` by the control plane.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from deia_hardening.errors import SettingsError
from deia_hardening.peers import parse_networks
from deia_hardening.routing import RoutePattern
from deia_hardening.settings import Bytes, Seconds, setting

_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch


@attrs.frozen
class RequestsSettings:
    """What the core must know of the service's requests."""

    effects: tuple[str, ...] = setting(
        (),
        "Routes that change something whatever their method, as 'GET /api/mailbox/{id}'. "
        "They are never retried, mirrored or shielded.",
    )
    long: tuple[str, ...] = setting(
        (), "Routes that take long by nature, as 'POST /api/reports'; they stay out of latency figures."
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "Addresses or networks whose forwarding headers, request ids, deadlines and actors are believed; `unix` for "
        "peers by a Unix socket. "
        "Everybody else's are kept as claims only.",
        file_only=True,
    )
    client_address: str = setting(
        "unverified",
        "Whether the peer's address can be believed: 'verified' says that the server's own handling of proxy headers "
        "is off (`run` turns it off and says so itself). Until then trusted_proxies grants nothing.",
        choices=("unverified", "verified"),
        file_only=True,
    )
    request_id_header: str = setting("x-request-id", "Header with a request's id, believed from trusted proxies only.")
    deadline_header: str = setting(
        "x-request-timeout", "Header with the time a caller waits, as '5s' or '800ms', from trusted proxies only."
    )
    actor: tuple[str, ...] = setting(
        (),
        "Who is asking: 'header:NAME' (from trusted proxies) or 'pkg.mod:function', called with the ASGI scope, "
        "returning an Actor or None; the first that answers wins.",
        file_only=True,
    )
    claim_limit: Bytes = setting(Bytes("256B"), "Longest value kept of what an untrusted peer says of itself.", ge=1)
    lame_duck: Seconds = setting(
        Seconds("0s"), "How long requests are still served after SIGTERM made the service unready.", ge=0, le=300
    )
    drain: Seconds = setting(
        Seconds("10s"), "How long streams and WebSockets may go on after SIGTERM, before they are ended.", ge=0, le=3600
    )
    start_timeout: Seconds = setting(Seconds("60s"), "How long one plugin may take to start.", ge=0.1)
    start_retry: Seconds = setting(
        Seconds("1s"),
        "First pause before a failed start without a lifespan is tried again; it doubles to 30 s.",
        ge=0.01,
    )
    stop_timeout: Seconds = setting(Seconds("10s"), "How long one plugin may take to stop.", ge=0.1)
    check_timeout: Seconds = setting(Seconds("5s"), "How long one plugin may take to check new settings.", ge=0.1)
    leave_timeout: Seconds = setting(
        Seconds("30s"), "How long a plugin that was turned off waits for its last request before it is stopped.", ge=0
    )

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        for name, routes in (("effects", self.effects), ("long", self.long)):
            for index, text in enumerate(routes):
                try:
                    RoutePattern.parse(text)
                except ValueError as error:
                    yield f"{name}.{index}", str(error)
        for index, text in enumerate(self.trusted_proxies):
            try:
                parse_networks((text,))
            except SettingsError as error:
                yield f"trusted_proxies.{index}", error.problems[0].message
        for name in ("request_id_header", "deadline_header"):
            if not _HEADER(getattr(self, name)):
                yield name, f"{getattr(self, name)!r} is no name of a header"
        for index, text in enumerate(self.actor):
            kind, _, name = text.partition(":")
            if not (_HEADER(name) if kind == "header" else kind and name):
                yield f"actor.{index}", f"{text!r} is neither 'header:NAME' nor 'pkg.mod:function'"

    @property
    def believed_proxies(self) -> tuple[str, ...]:
        """`trusted_proxies` where the peer's address is the peer's, else none: a server that rewrites it from a header
        lets every client choose it."""
        return self.trusted_proxies if self.client_address == "verified" else ()
