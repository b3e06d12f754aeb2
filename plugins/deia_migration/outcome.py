"""What an answer was worth: a failure or not, and how long its client waited for the first of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from deia_hardening.plugin import Exchange, Message, RequestContext, Scope, Send
from deia_migration.keys import load
from deia_migration.settings import FailureSettings

_MISSING: Any = object()


Outcome = tuple[bool, float, str, bool, bool, float]
"""One answered request, as the judge takes it: (new, weight, who, network, failed, waited). A plain tuple: it is made
for each request.

`who` is an authenticated actor's id or, when `network`, the client's address; `waited` is seconds until the answer
began, or negative where latency is of no interest (WebSockets, long routes, failures).
"""


def failed(exchange: Exchange, error: BaseException | None, statuses: frozenset[int]) -> bool | None:
    """Whether this exchange counts against its version; None when its client left before it could be told."""
    status = exchange.status
    if status >= 500 or status in statuses:
        return True
    if exchange.complete:
        return status == 101 and exchange.close_code == 1011 and not exchange.disconnected
    if exchange.disconnected:
        return None
    return error is not None or status != 101  # raised, cut off in the middle, or never answered


def told(context: RequestContext, new: bool, weight: float, bad: bool, waited: float) -> Outcome:
    """The outcome of a request, with who asked."""
    actor = context.actor
    if actor.auth and actor.id:
        return (new, weight, actor.id, False, bad, waited)
    client = context.scope.get("client")
    return (new, weight, client[0] if client else "", True, bad, waited)


class BodyCheck:
    """Looks into JSON answers for what the settings call a failure: members, or the team's predicate.

    One per request that is judged, in the place of `send`; it passes every message on as it came.
    """

    __slots__ = ("_body", "_json", "_limit", "_rules", "_scope", "_send", "_status", "bad")

    def __init__(self, rules: BodyRules, scope: Scope, send: Send) -> None:
        self._rules = rules
        self._scope = scope
        self._send = send
        self._limit = rules.limit
        self._body = b""
        self._json = False
        self._status = 0
        self.bad = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            self._json = any(
                name.lower() == b"content-type" and b"json" in value for name, value in message.get("headers", ())
            )
        elif kind == "http.response.body" and (self._json or self._rules.predicate is not None):
            if len(self._body) <= self._limit:
                self._body += message.get("body", b"")
            if not message.get("more_body") and len(self._body) <= self._limit:
                self.bad = self._rules.bad(self._scope, self._status, self._body)
        await self._send(message)


class BodyRules:
    """What makes a body a failure. `predicate` is the team's function, or None."""

    def __init__(self, settings: FailureSettings) -> None:
        self.limit = int(settings.json_limit)
        self.members = tuple((path.split("."), value) for path, value in settings.json.items())
        self.predicate: Callable[..., Any] | None = load(settings.predicate) if settings.predicate else None

    @property
    def wanted(self) -> bool:
        return bool(self.members) or self.predicate is not None

    def bad(self, scope: Scope, status: int, body: bytes) -> bool:
        """Whether this answer is a failure; a predicate that raises says no."""
        if self.predicate is not None:
            try:
                if self.predicate(scope, status, body):
                    return True
            except Exception:
                return False
        if not self.members:
            return False
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return False
        return any(member(document, path) == value for path, value in self.members)


def member(document: Any, path: list[str]) -> Any:
    """The value at a dotted path in a JSON document, or something equal to nothing."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part, _MISSING)
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return _MISSING
    return document
