"""What an answer was worth: a failure or not, and how long its client waited for the first of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from deia_hardening.plugin import Exchange, Message, Scope, Send
from deia_migration.keys import load
from deia_migration.settings import FailureSettings
from deia_migration.traffic import Flight

_MISSING: Any = object()


@attrs.frozen
class Outcome:
    """One answered request, as the judge takes it.

    `who` is an authenticated actor's id or a network prefix's address; `waited` seconds until the answer began, or
    a negative number where latency is of no interest (WebSockets, long routes, failures).
    """

    new: bool
    weight: float
    who: str
    network: bool
    failed: bool
    waited: float


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


def outcome_of_flight(
    flight: Flight, error: BaseException | None, statuses: frozenset[int], bad_body: bool, long: bool
) -> Outcome | None:
    """What the judge is told about a flight that has ended, or None when it says nothing."""
    if flight.counted or flight.cutting:
        return None
    context = flight.context
    exchange = context.exchange
    verdict = failed(exchange, error, statuses)
    if verdict is None:
        return None
    verdict = verdict or bad_body
    waited = -1.0
    if not verdict and not long and exchange.status != 101:
        waited = (exchange.first_byte or exchange.started) - flight.arrived
    return told(flight, verdict, waited)


def told(flight: Flight, verdict: bool, waited: float) -> Outcome:
    """The outcome of a flight, with who asked."""
    context = flight.context
    actor = context.actor
    if actor.auth and actor.id:
        return Outcome(flight.new, flight.weight, actor.id, False, verdict, waited)
    client = context.scope.get("client")
    return Outcome(flight.new, flight.weight, client[0] if client else "", True, verdict, waited)


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
