"""Browser sessions, for the control plane's own address only: an app's port takes tokens, never cookies.

A session is a random name whose SHA-256 the store keeps with the token it was opened by; it ends with that token, and
when the secret it was opened with does no longer count.
The cookie is Secure, HttpOnly, SameSite=Strict and bound to the control plane's path.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from deia_hardening.context import Actor
from deia_hardening.control import tokens
from deia_hardening.control.settings import ControlSettings
from deia_hardening.plugin import Host
from deia_hardening.store import Write

if TYPE_CHECKING:
    from deia_hardening.control.auth import Caller, TokenTable

COOKIE: Final = "__Secure-deia"
_PREFIX: Final = "sessions/"
_MOST: Final = 200


@attrs.frozen
class Session:
    """What the store keeps of a session. `expires` is Unix seconds, `digest` that of the token's secret."""

    token: str
    expires: float
    digest: str = ""


_decode = msgspec.json.Decoder(Session).decode


class Sessions:
    """Opens, finds and ends sessions. Awaits on any loop."""

    def __init__(self, host: Host, settings: Callable[[], ControlSettings], table: TokenTable) -> None:
        self._host = host
        self._settings = settings
        self._table = table

    async def open(self, caller: Caller) -> str:
        """Open a session for a token's bearer; returns the Set-Cookie header."""
        settings = self._settings()
        now = self._host.clock.wall()
        name = secrets.token_urlsafe(32)
        record = Session(caller.actor.session, now + settings.session_ttl, caller.digest)
        gone = [key for key, entry in await self._host.store.list(_PREFIX) if _decode(entry.value).expires <= now]
        kept = len(await self._host.store.list(_PREFIX)) - len(gone)
        if kept >= _MOST:
            gone.extend(key for key, _ in (await self._host.store.list(_PREFIX))[: kept - _MOST + 1] if key not in gone)
        await self._host.store.apply(
            [Write(_key(name), msgspec.json.encode(record)), *(Write(key, None) for key in gone)]
        )
        return self._cookie(name, int(settings.session_ttl))

    async def find(self, cookie: str) -> Caller | None:
        """The caller behind a Cookie header, or None."""
        from deia_hardening.control.auth import Caller

        name = _named(cookie)
        entry = await self._host.store.get(_key(name)) if name else None
        if entry is None:
            return None
        session, now = _decode(entry.value), self._host.clock.wall()
        token = await self._table.find(session.token)
        if token is None or now >= session.expires or not tokens.is_of(token, session.digest, now):
            return None
        actor = Actor(type="token", id=token.name, auth="session", session=token.id, roles=frozenset((token.role,)))
        return Caller(actor, token.level, session=True)

    async def close(self, cookie: str) -> str:
        """End the session of a Cookie header; returns the Set-Cookie header that forgets it."""
        name = _named(cookie)
        if name:
            await self._host.store.delete(_key(name))
        return self._cookie("", 0)

    def _cookie(self, value: str, age: int) -> str:
        return f"{COOKIE}={value}; Path={self._settings().prefix}; Max-Age={age}; Secure; HttpOnly; SameSite=Strict"


def _named(cookie: str) -> str:
    """The session's name in a Cookie header; empty when there is none, or two (one could be planted). Pure."""
    found = [value for part in cookie.split(";") for name, _, value in (part.strip().partition("="),) if name == COOKIE]
    return found[0][:128] if len(found) == 1 else ""


def _key(name: str) -> str:
    return _PREFIX + sha256(name.encode("utf-8", "replace")).hexdigest()
