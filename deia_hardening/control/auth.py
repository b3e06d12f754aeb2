"""Who calls: the local uid, a token's bearer or a session; and whether the role is enough.

Tokens are read from the store into memory and read again when the home's page says that they changed, so a flood
of wrong ones costs no disk and a revoked one stops at the next request on this machine.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import msgspec

from deia_hardening.context import ANONYMOUS, Actor
from deia_hardening.control import tokens
from deia_hardening.control.http import Peer, Request, Way
from deia_hardening.control.sessions import COOKIE, Sessions
from deia_hardening.control.settings import ControlSettings
from deia_hardening.control.tokens import Token
from deia_hardening.control.tries import FailedTries
from deia_hardening.events import Event, Target
from deia_hardening.operations import Role
from deia_hardening.plugin import Host
from deia_hardening.problem import Problem
from deia_hardening.store import StoreError
from deia_hardening.types import Scope

_USED_EVERY: Final = 60.0  # seconds between two notes of a token's last use
_UNSAFE_HINT: Final = "send the request from the control plane's own page, or with a token from a program"


@attrs.frozen
class Caller:
    """Who calls, and what they may do. `session`: a browser's session; `digest`: that of a bearer's secret."""

    actor: Actor
    role: Role
    local: bool = False
    session: bool = False
    digest: str = attrs.field(default="", repr=False)


class TokenTable:
    """The tokens of the home, in memory. Its methods await on any loop."""

    def __init__(self, host: Host, settings: Callable[[], ControlSettings]) -> None:
        self._host = host
        self._settings = settings
        self._held: Mapping[str, Token] = {}
        self._counter = -1
        self._read_at = float("-inf")
        self._noted: dict[str, float] = {}

    async def find(self, identity: str) -> Token | None:
        """The token, as of this moment. Raises Problem 503 when the store can't be read and nothing is known."""
        await self.refresh()
        return self._held.get(identity)

    async def refresh(self) -> Mapping[str, Token]:
        """All tokens, read again if they may have changed."""
        now = self._host.clock.monotonic()
        counter = self._host.page.area("tokens")
        if counter != self._counter or now - self._read_at >= self._settings().token_refresh:
            try:
                entries = await self._host.store.list(tokens.PREFIX)
            except StoreError as error:
                raise Problem(503, f"tokens can't be checked: {error}", retry_after=1) from error
            found = (tokens.decode(entry.value) for _, entry in entries)
            self._held = {token.id: token for token in found if token is not None}
            self._counter, self._read_at = counter, now
        return self._held

    async def note_use(self, token: Token) -> None:
        """Keep when the token was used last, at most once a minute; failing to is no failure."""
        now = self._host.clock.wall()
        if now - self._noted.get(token.id, 0.0) < _USED_EVERY:
            return
        if len(self._noted) > 10_000:
            self._noted.clear()
        self._noted[token.id] = now
        with contextlib.suppress(StoreError):
            await self._host.store.put(tokens.USE_PREFIX + token.id, msgspec.json.encode(round(now)))


class Authentication:
    """Finds the caller of a request. `caller` and `authenticate` await on any loop."""

    def __init__(self, host: Host, settings: Callable[[], ControlSettings]) -> None:
        self._host = host
        self._settings = settings
        self.table = TokenTable(host, settings)
        self.sessions = Sessions(host, settings, self.table)
        self.tries = FailedTries()

    async def caller(self, request: Request) -> Caller:
        """Who calls. Raises Problem 401, 403 or 429."""
        peer = request.peer
        if peer.way is Way.SOCKET:
            return self._local(request)
        self._refuse_cross_site(request)
        header = request.headers.get("authorization", "")
        if header:
            return await self.bearer(header, peer.address)
        cookie = request.headers.get("cookie", "")
        if peer.way is Way.LISTENER and COOKIE in cookie:
            caller = await self.sessions.find(cookie)
            if caller is not None:
                if request.method not in ("GET", "HEAD"):
                    self._require_same_origin(request)
                return caller
        raise self._unauthorised("this needs a token: send 'Authorization: Bearer …'")

    async def bearer(self, header: str, address: str) -> Caller:
        """The bearer of a token. Raises Problem 401 or 429."""
        scheme, _, text = header.partition(" ")
        parsed = tokens.parse(text.strip()) if scheme.lower() == "bearer" else None
        found = await self.table.find(parsed[0]) if parsed is not None else None
        secret = parsed[1] if parsed is not None else ""
        if not tokens.matches(found, secret, self._host.clock.wall()) or found is None:
            settings = self._settings()
            wait = self.tries.failed(
                address, self._host.clock.monotonic(), settings.failed_tries, settings.failed_window
            )
            if wait is None:
                where = Target("address", address[:64])
                self._host.events.emit(
                    Event(
                        action="control.token_refused", target=where, outcome="refused", kind="system", actor=ANONYMOUS
                    )
                )
            else:
                raise Problem(429, "too many wrong tokens from this address", retry_after=wait)
            raise self._unauthorised("the token is wrong, expired or revoked", error="invalid_token")
        await self.table.note_use(found)
        actor = Actor(type="token", id=found.name, auth="token", session=found.id, roles=frozenset((found.role,)))
        return Caller(actor, found.level, digest=tokens.digest_of(secret))

    async def authenticate(self, scope: Scope, role: Role) -> Actor:
        """The caller of an ASGI request, for plugins with a route of their own. Raises Problem 401, 403 or 429."""
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(headers) != 1:
            raise self._unauthorised("this needs one token: send 'Authorization: Bearer …'")
        client = scope.get("client")
        caller = await self.bearer(headers[0].decode("latin-1"), str(client[0]) if client else "")
        require(caller, role)
        return caller.actor

    def _local(self, request: Request) -> Caller:
        peer = request.peer
        if peer.uid not in (0, os.geteuid()):
            raise Problem(403, f"uid {peer.uid} may not use this socket")
        forwarded = request.headers.get("deia-forwarded-actor")
        if forwarded is not None:
            return read_forwarded(forwarded)
        return Caller(local_actor(peer), Role.ADMIN, local=True)

    @staticmethod
    def _unauthorised(detail: str, error: str = "") -> Problem:
        challenge = 'Bearer realm="deia"' + (f', error="{error}"' if error else "")
        return Problem(401, detail, headers={"www-authenticate": challenge})

    @staticmethod
    def _refuse_cross_site(request: Request) -> None:
        """Whatever comes from another site's page is refused, tokens or not; navigation that reads is harmless."""
        site = request.headers.get("sec-fetch-site", "")
        if site not in ("", "same-origin", "none"):
            raise Problem(403, f"a page of another origin sent this ({site[:32]}); {_UNSAFE_HINT}")
        origin = request.headers.get("origin")
        if origin is not None and not same_origin(origin, request):
            raise Problem(403, f"a page of another origin sent this; {_UNSAFE_HINT}")

    @staticmethod
    def _require_same_origin(request: Request) -> None:
        """A session changes things only for a browser that says that our own page asked."""
        if request.headers.get("sec-fetch-site") != "same-origin" or "origin" not in request.headers:
            raise Problem(403, f"a session may change things only from the control plane's own page; {_UNSAFE_HINT}")


def require(caller: Caller, role: Role) -> None:
    """Raise Problem 403 when the caller's role is not enough."""
    if caller.role < role:
        raise Problem(403, f"this needs the role {role.name.lower()}; the caller is {caller.role.name.lower()}")


def same_origin(origin: str, request: Request) -> bool:
    """Whether an Origin header names the host that the request was sent to. Pure."""
    try:
        parts = urlsplit(origin)
        # A balancer in front may speak TLS for us: then the page is https and the connection is not.
        schemes = ("https",) if request.peer.secure else ("https", "http")
        return parts.scheme in schemes and parts.netloc.lower() == request.headers.get("host", "").lower()
    except ValueError:
        return False


def local_actor(peer: Peer) -> Actor:
    """The user behind a uid, as the system names them."""
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        name = str(peer.uid)
    return Actor(type="user", id=name, auth=f"uid:{peer.uid}")


def write_forwarded(caller: Caller) -> str:
    """The caller as a header, for another worker of the same home and uid."""
    actor = caller.actor
    record = {
        "type": actor.type,
        "id": actor.id,
        "auth": actor.auth,
        "session": actor.session,
        "role": caller.role.name,
    }
    return msgspec.json.encode(record).hex()


def read_forwarded(text: str) -> Caller:
    """The caller that another worker has authenticated. Raises Problem 400."""
    try:
        record: dict[str, Any] = msgspec.json.decode(bytes.fromhex(text), type=dict[str, str])
        role = Role[record["role"]]
        actor = Actor(
            type=record["type"][:64],
            id=record["id"][:128],
            auth=f"forwarded:{record['auth'][:64]}",
            session=record["session"][:64],
            roles=frozenset((role.name.lower(),)),
        )
    except (ValueError, KeyError, msgspec.MsgspecError):
        raise Problem(400, "the forwarded caller can't be read") from None
    return Caller(actor, role)
