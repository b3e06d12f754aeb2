"""Which version a request goes to: an override, else its session's, else by key and weight.

Compiled once per revision from the settings; a request pays for one pass over its headers and one hash.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any

from deia_hardening.plugin import RequestContext, Scope, route_path
from deia_migration.ahead import BodyReader
from deia_migration.keys import LONGEST, Found, Source, compile_key, cookie, headers_of, pick
from deia_migration.sessions import SessionTable, fingerprint
from deia_migration.settings import MigrationSettings
from deia_migration.sources import JSON, SessionSource, compile_session
from deia_migration.traffic import Live

_now = time.time

NOT_JUDGED = -1.0
"""The weight of a request that was not assigned by chance: an override, a session of unknown birth."""


_HEADER, _ACTOR, _OTHER = range(3)


class Chooser:
    """One revision's way to choose. Callable from any thread; raises nothing."""

    __slots__ = (
        "_key", "_only", "_override", "_plan", "_prefixes", "_sources", "_table", "_wanted", "ahead", "client_made",
        "header_names", "learners", "looks_at_bodies",
    )  # fmt: skip

    def __init__(self, settings: MigrationSettings, table: SessionTable) -> None:
        """Raises ImportError, AttributeError or TypeError for a resolver that is not there."""
        sources = tuple(compile_session(text) for text in settings.sessions)
        self._sources: tuple[SessionSource, ...] = sources
        self._table = table
        self._key = compile_key(settings.key, ipv4=settings.network_ipv4, ipv6=settings.network_ipv6)
        self._plan = tuple(_step(text, settings) for text in settings.key)
        # The header that is the first choice of a key: a request with nothing else that is wanted needs no more looks.
        first = self._plan[0][1] or b"" if self._plan and self._plan[0][0] == _HEADER else b""
        self._only = b"" if any(first in source.headers for source in sources) else first
        self._override = _compile_override(settings)
        wanted = headers_of(settings.key).union(*(source.headers for source in sources))
        if self._override is not None:
            wanted |= headers_of((f"header:{settings.override.header}",)) if settings.override.header else frozenset()
            wanted |= frozenset({b"cookie"}) if settings.override.cookie else frozenset()
        self._wanted = wanted
        # A request that carries none of the wanted headers, on none of these paths, has no session.
        self._prefixes = (
            tuple(source.prefix for source in sources if not source.headers and not source.json)
            if all(source.headers or source.prefix or source.json for source in sources)
            else ("",)
        )
        self.client_made = tuple(source for source in sources if not source.issued)
        self.learners = tuple(source for source in sources if source.from_headers is not None)
        self.header_names = frozenset(name for source in self.learners for name in source.answers)
        member = next((source.json for source in sources if source.json), "")
        self.ahead = BodyReader(member, int(settings.session_body)) if member else None
        self.looks_at_bodies = tuple(source for source in sources if source.from_body is not None)

    def choose_read(
        self, live: Live, scope: Scope, context: RequestContext, body: bytes
    ) -> tuple[bool, float, SessionSource | None]:
        """`choose` for a request whose body showed the session `body`."""
        return self._choose(live, scope, context, {**pick(scope, self._wanted), JSON: body})

    def choose(self, live: Live, scope: Scope, context: RequestContext) -> tuple[bool, float, SessionSource | None]:
        """Whether the candidate answers, at which probability, and the session source that decided it (or None)."""
        wanted = self._wanted
        found: Found | None = None
        for name, value in scope["headers"]:
            if name in wanted:
                if found is None:
                    found = {name: value}
                elif name not in found:
                    found[name] = value
                elif name == b"cookie":  # HTTP/2 may split it (RFC 9113, section 8.2.3)
                    found[name] += b"; " + value
        weight = live.weight
        if found is None:
            if self._prefixes and route_path(scope).startswith(self._prefixes):
                return self._choose(live, scope, context, {})
            key: str | bytes | None = None
            for kind, what in self._plan:
                if kind == _ACTOR:
                    key = context.actor.id
                elif kind == _OTHER:
                    key = _ask(what, scope, context, {})
                if key:
                    break
        elif len(found) == 1 and self._only in found and self._override is None:
            if self._prefixes and route_path(scope).startswith(self._prefixes):
                return self._choose(live, scope, context, found)
            key = found[self._only][:LONGEST]
        else:
            return self._choose(live, scope, context, found)
        if live.split.new(key or None, weight):
            return (True, weight, None) if live.candidate.ready else (False, NOT_JUDGED, None)
        return False, weight, None

    def _choose(
        self, live: Live, scope: Scope, context: RequestContext, found: Found
    ) -> tuple[bool, float, SessionSource | None]:
        """The whole way: override, session, key."""
        override = self._override
        if override is not None:
            forced = override(live, scope, context, found)
            if forced is not None:
                return forced and live.candidate.ready, NOT_JUDGED, None
        bind: tuple[SessionSource, int] | None = None
        unknown: SessionSource | None = None
        for source in self._sources:
            try:
                session = source.read(scope, context, found)
            except Exception:  # noqa: S112 - the team's resolver: its bug must not fail a request
                continue
            if not session:
                continue
            number = fingerprint(source.tag, session)
            bound = self._table.find(number, int(_now()))
            if bound is not None:
                # Also while it misses a readiness check: the session is nowhere else.
                if bound.version == live.candidate.number and not live.candidate.lost:
                    return True, bound.weight, source
                if bound.version == live.stable.number:
                    return False, bound.weight, source
            if source.issued:
                unknown = unknown or source
            elif bind is None:
                bind = (source, number)
        if unknown is not None:  # issued before anybody learned: by the version that served then
            return False, NOT_JUDGED, unknown
        weight = live.weight
        new = live.split.new(self._key(scope, context, found), weight)
        if new and not live.candidate.ready:
            return False, NOT_JUDGED, None
        if bind is not None:
            version = live.candidate if new else live.stable
            self._table.bind(bind[1], version.number, weight, int(_now()))
            return new, weight, bind[0]
        return new, weight, None

    def key(self, scope: Scope, context: RequestContext) -> str | bytes | None:
        """The sticky key of a request, or None."""
        return self._key(scope, context, pick(scope, self._wanted))

    def bind_running(self, version: int, scope: Scope, context: RequestContext, body: bytes | None = None) -> None:
        """With no rollout: note the sessions that clients make up, so that a later one leaves them alone."""
        found = pick(scope, self._wanted)
        if body is not None:
            found[JSON] = body
        for source in self.client_made:
            try:
                session = source.read(scope, context, found)
            except Exception:  # noqa: S112 - the team's resolver: its bug must not fail a request
                continue
            if session:
                number = fingerprint(source.tag, session)
                bound = self._table.find(number, int(_now()))
                if bound is None or bound.version != version:
                    self._table.bind(number, version, NOT_JUDGED, int(_now()))

    def learn(self, source: SessionSource, session: str | bytes, version: int, weight: float) -> None:
        """A version has issued a session, or names again the one that it has."""
        number = fingerprint(source.tag, session)
        bound = self._table.find(number, int(_now()))
        if bound is None or bound.version != version:
            self._table.bind(number, version, weight, int(_now()))

    def end(self, source: SessionSource, scope: Scope, context: RequestContext) -> None:
        """A client has ended its session."""
        session = source.read(scope, context, pick(scope, self._wanted))
        if session:
            self._table.forget(fingerprint(source.tag, session))


def _step(text: str, settings: MigrationSettings) -> tuple[int, Any]:
    kind, _, rest = text.partition(":")
    if kind == "header":
        return _HEADER, rest.lower().encode("latin-1")
    if text == "actor":
        return _ACTOR, None
    if kind == "cookie":
        return _HEADER, None
    return _OTHER, compile_key((text,), ipv4=settings.network_ipv4, ipv6=settings.network_ipv6)


def _ask(source: Source, scope: Scope, context: RequestContext, found: Found) -> str | bytes | None:
    return source(scope, context, found)


Override = Callable[[Live, Scope, RequestContext, Found], "bool | None"]


def _compile_override(settings: MigrationSettings) -> Override | None:
    rules = settings.override
    if not rules.secret and not rules.role:
        return None  # nobody may override
    header = rules.header.lower().encode("latin-1")
    wanted = rules.cookie.encode("latin-1") + b"=" if rules.cookie else b""
    secret = (rules.secret or "").encode() + b":"
    role = rules.role

    def override(live: Live, scope: Scope, context: RequestContext, found: Found) -> bool | None:
        value = found.get(header) if header else None
        if value is None and wanted:
            value = cookie(found.get(b"cookie"), wanted)
        if value is None:
            return None
        if len(secret) > 1 and hmac.compare_digest(value[: len(secret)], secret):
            value = value[len(secret) :]
        elif not role or role not in context.actor.roles:
            return None
        if value in (b"new", b"always") or value == live.candidate.label.encode():
            return True
        if value in (b"old", b"never") or value == live.stable.label.encode():
            return False
        return None

    return override
