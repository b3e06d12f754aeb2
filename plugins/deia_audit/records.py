"""The bytes of one record: precomputed fragments for what repeats, JSON escapes for what a client sent.

What a request's record is made of is taken when the request is over; its bytes are made when the journal's writer takes
it, many at once: a fifth of what it costs between two requests, whose code and data fill the caches. They are made once
and never serialised again, since they are the leaf of the tree. Caches of fragments are bounded and dropped whole when
full, so no client can make them grow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final, Self

import msgspec

from deia_audit.escape import plain_map, quote, quote_header
from deia_audit.ids import HEX3, ids
from deia_audit.outcome import OPS, level_of, outcome_of, trace_id
from deia_hardening.context import ANONYMOUS, SYSTEM, Actor, Mode, Named, RequestContext
from deia_hardening.journal import Late, encode_event
from deia_hardening.journal.lines import HARD_LIMIT
from deia_hardening.routing import Templates
from deia_hardening.texts import header_text

CACHE_LIMIT = 4096
UNMATCHED = "(unmatched)"
_usual: Final = itemgetter("path", "method", "client", "query_string", "path_params", "route")
"""What a scope holds after the routing of most requests, in one call."""


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read(8)
    except OSError:
        return "unknown"


_boot_id = _boot()


def _worker_part() -> str:
    return f'"boot":"{_boot_id}","worker":{os.getpid()}'


_tail = _worker_part()


def _after_fork() -> None:
    global _tail
    _tail = _worker_part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Ended(Late, gc=False, eq=False):
    """What the record of a request will say: values, and what nobody changes after the request."""

    # The bases' fields have defaults, so these must; each is given, up to `target`.
    assembler: Assembler = None  # type: ignore[assignment]
    number: int = 0
    status: int = 0
    received: float = 0.0
    ended: float = 0.0
    sent: int = 0
    headers: Iterable[tuple[bytes, bytes]] = ()
    mode: Mode = Mode.FULL
    version: str = ""
    bot: str = ""
    actor: Actor = ANONYMOUS
    reason: str | None = None
    """None where only the header says it."""
    claims: Mapping[str, str] | None = None
    request: str | Named | None = None
    """The request's id where another record, or a peer, has given it one."""
    routing: tuple[str, str, Any, bytes, Any, Any] = ("", "", None, b"", None, None)
    """Path, method, client, query string, path parameters, route."""
    templates: Templates = None  # type: ignore[assignment]
    route: str | None = None
    """None where `templates` know it from the route."""
    kind: str = ""
    target: str = ""
    stage: str = "result"
    failed: bool = False
    error: str = ""
    extra: bytes = b""
    inside: str = ""

    @property
    def id(self) -> str:
        return ids.text(self.number, self._time)

    @classmethod
    def _encode(cls, records: list[Self]) -> None:
        for assembler in {record.assembler for record in records}:
            assembler.look()
            assembler.encode([record for record in records if record.assembler is assembler])

    def _unreadable(self, error: Exception) -> bytes:
        """Return what is known of the call, where a body can't be made: a key could not be read."""
        return encode_event(
            {
                "id": self.id, "kind": "http", "stage": self.stage, "outcome": "failure", "level": "error",
                "http": {"method": self.routing[1], "path": self.routing[0], "status": self.status},
                "event": "unreadable", "error": f"{type(error).__qualname__}: {error}",
            }
        )  # fmt: skip


class Assembler:
    """Makes records' bodies for one app. Callable from any thread; `subject` may replace actors' ids."""

    def __init__(
        self,
        look: Callable[[], None] = lambda: None,
        subject: Callable[[str], str] = str,
        address: Callable[[str], str] = str,
        *,
        user_agent: bool = True,
        shows_query: bool = False,
    ) -> None:
        self._actors: dict[tuple[str, ...], str] = {}
        self._calls: dict[tuple[str, str, int, bool, str], str] = {}
        self._agents: dict[bytes, str] = {}
        self._who: dict[tuple[Any, ...], str] = {}
        self._names: dict[str, str] = {}
        self.look = look
        """Asked before names are looked up for many records: whether one was erased."""
        self._subject = subject
        self._address = address
        self._user_agent = user_agent
        self._shows_query = shows_query

    def reset(self) -> None:
        """Forget the fragments, after a subject was erased."""
        for cache in (self._actors, self._calls, self._agents, self._who):
            cache.clear()

    def knows(self, actor: Actor) -> bool:
        """Whether an actor's fragment is ready."""
        return _shown(actor) in self._actors

    # -- fragments --

    def actor(self, actor: Actor) -> str:
        """Return `"actor":{…}`."""
        key = _shown(actor)
        found = self._actors.get(key)
        if found is None:
            parts = ['"type":' + quote(actor.type)]
            if actor.id:  # the service itself is no person
                parts.append('"id":' + quote(actor.id if actor.type == SYSTEM.type else self._subject(actor.id)))
            for name in ("auth", "session", "on_behalf_of"):
                value = getattr(actor, name)
                if value:
                    value = self._subject(value) if name == "on_behalf_of" else value
                    parts.append(f'"{name}":{quote(value)}')
            found = '"actor":{' + ",".join(parts) + "}"
            _keep(self._actors, key, found)
        return found

    def call(self, key: tuple[str, str, int, bool, str]) -> str:
        """Return what method, route, status, failure and stage determine, up to inside of `"http":{`."""
        method, route, status, failed, stage = key
        known = method if method in OPS else "OTHER"
        outcome = outcome_of(status, error=failed)
        if stage == "intent":
            outcome = "pending"
        found = (
            f'"kind":"http","stage":"{stage}","action":{quote(f"{known} {route or UNMATCHED}")},'
            f'"op":"{OPS.get(method, "other")}","outcome":"{outcome}","level":"{level_of(outcome, status)}",'
            f'"http":{{"method":{quote(method, 32)}'
        )
        if status:
            found += f',"status":{status}'
        _keep(self._calls, key, found)
        return found

    def source(self, address: str, agent: bytes | None) -> str:
        """Return `"src":{…}` of the peer's address and the user agent."""
        parts = []
        shown = self._address(address)
        if shown:
            parts.append('"ip":' + quote(shown, 64))
        if agent is not None and self._user_agent:
            text = self._agents.get(agent)
            if text is None:
                text = '"ua":' + quote_header(agent, 256)
                _keep(self._agents, agent, text)
            parts.append(text)
        return '"src":{' + ",".join(parts) + "}"

    def who(self, key: tuple[Any, ...], record: Ended) -> str:
        """Return `"actor":{…},"src":{…},"mode":…` and, where there is one, `"version":…`."""
        found = f'{self.actor(record.actor)},{self.source(key[0], key[1])},"mode":"{record.mode}"'
        if record.version:
            found += ',"version":' + quote(record.version)
        _keep(self._who, key, found)
        return found

    def name(self, key: str, text: str) -> str:
        """Return a short text that is known to repeat, quoted."""
        found = quote(text, 128)
        _keep(self._names, key, found)
        return found

    # -- records --

    def take(self, context: RequestContext, now_ns: int, *, kept: bool = False) -> Ended:
        """Take what a request's record is made of, for the journal's `append_late`: 0.7 µs, 3 between two requests.

        `now_ns` is the record's time, `kept` whether somebody will wait for it.
        """
        scope = context.scope
        route = context._route
        try:
            routing = _usual(scope)
        except KeyError:
            routing = (
                scope["path"], scope.get("method") or "WEBSOCKET", scope.get("client"),
                scope.get("query_string") or b"", scope.get("path_params"), None,
            )  # fmt: skip
            if route is None:
                route = context.route
        else:
            if route is None and ("fastapi" in scope or "app_root_path" in scope or routing[5] is None):
                route = context.route
        kind = target = ""
        parameters = routing[4]
        if parameters:
            for kind in parameters:  # noqa: B007  # the last one, by the cheapest way
                pass
            target = parameters[kind]
            if target.__class__ is not str:
                target = str(target)
        actor = context.actor
        if actor.__class__ is not Actor:  # the app's own kind, which may change or refer to anything
            actor = Actor(actor.type, actor.id, actor.auth, actor.session, actor.on_behalf_of)
        record = Ended(
            b"", now_ns, None, None, None, kept, 640 + len(routing[0]), self, ids.number(), context.status,  # type: ignore[arg-type]
            context.received, context.ended, context.bytes_out, context.headers, context.mode, context.version,
            context.bot, actor, context._reason, context._claims, context._id, routing, context.revision.template,
            route, kind, target,
        )  # fmt: skip
        if context._id is None:
            context._id = record
        return record

    def http(
        self,
        context: RequestContext,
        now_ns: int,
        stage: str,
        extra: bytes = b"",
        inside: str = "",
        status: int = 0,
    ) -> Ended:
        """Take the same of any request. `extra` are further members, `inside` further ones of `http`."""
        record = self.take(context, now_ns, kept=True)
        error = context.error
        record._guess += len(extra)
        record.stage = stage
        record.extra = extra
        record.inside = inside
        record.status = status or context.status
        if error is not None:
            record.error = type(error).__qualname__
            record.failed = not (context.complete and context.status)
        return record

    def _more(self, record: Ended, trace: bytes | None, reason: str | None) -> str:
        more = ""
        if trace is not None:
            more = f',"trace":"{trace.decode("ascii")}"'
        if record.routing[3] and not self._shows_query:
            more += ',"redacted":["query"]'
        if reason:
            more = f'{more},"reason":{quote(reason)}'
        if record.error:
            more = f'{more},"error":{quote(record.error, 128)}'
        if record.claims:
            more = f'{more},"claims":{plain_map(record.claims).decode("ascii")}'
        return more

    def encode(self, records: list[Ended]) -> None:
        """Make the bytes of requests' records, 2 µs each. One loop: a call for each step of each costs more."""
        calls, everybody, names = self._calls, self._who, self._names
        millisecond = high = -1
        before = behind = ""
        for record in records:
            try:
                agent = trace = None
                reason = record.reason
                for name, value in record.headers:
                    length = len(name)  # cheaper than three comparisons for every header
                    if length == 10:
                        if name == b"user-agent":
                            agent = value
                    elif length == 11:
                        if name == b"traceparent":
                            trace = trace_id(value)
                        elif name == b"deia-reason" and reason is None:
                            reason = header_text(value, 1024)
                more = ""
                path, method, client, query, _, routed = record.routing
                if trace is not None or reason or query or record.error or record.claims:
                    more = self._more(record, trace, reason)
                route = record.route
                if route is None:
                    route = record.templates.of(routed)
                key = (method, route, record.status, record.failed, record.stage)
                call = calls.get(key) or self.call(key)
                bot = record.bot
                if bot:
                    more = f'{more},"bot":{quote(bot, 128)}'
                request = record.request
                kind = record.kind
                if kind:
                    shown = names.get(kind) or self.name(kind, str(kind).removesuffix("_id"))
                    target = f',"target":{{"type":{shown},"id":{quote(record.target, 256)}}}'
                    more = target + more if request is None else f"{_request(request)}{target}{more}"
                elif request is not None:
                    more = _request(request) + more
                inside = record.inside
                when = ended = record.ended
                if ended:
                    inside = f'{inside},"ms":{(ended - record.received) * 1000:.3f},"bytes":{record.sent}'
                else:
                    when = record.received
                actor = record.actor
                address = client[0] if client else ""
                if address.__class__ is not str:
                    address = str(address)
                whole: tuple[Any, ...] = (address, agent, record.mode, record.version)
                if actor is not ANONYMOUS:
                    whole += _shown(actor)
                who = everybody.get(whole) or self.who(whole, record)
                time_ms, number = record._time // 1_000_000, record.number
                if time_ms != millisecond or number >> 12 != high:
                    millisecond, high = time_ms, number >> 12
                    before, behind = ids.parts(millisecond, high)
                if record.extra:
                    who, more = "", f"{who}\0{more}"
                body = (
                    f'"id":"{before}{HEX3[number & 0xFFF]}{behind}",{call},"path":{quote(path)}{inside}}},{who}{more}'
                    f',"mono":{int(when * 1e6)},{_tail}'
                ).encode("ascii")
                if record.extra:
                    body = body.replace(b"\0", record.extra, 1)  # no quoted text holds one
            except Exception as error:
                body = record._unreadable(error)
            if record.extra or len(body) > HARD_LIMIT:  # all else is bounded, ASCII and on one line
                body = record._inlet._fitted(body)
            record._body = body
            if record._kept:  # else it is let go itself
                record.headers = record.claims = record.routing = None  # type: ignore[assignment]

    def event(self, members: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        """Return the members of a record that is not a request's, ready for the journal's encoder."""
        record: dict[str, Any] = {"id": ids.next(), **members}
        record.setdefault("actor", msgspec.Raw(self.actor(actor).removeprefix('"actor":').encode("ascii")))
        record["mono"] = int(time.monotonic() * 1e6)
        record["boot"] = _boot_id
        record["worker"] = os.getpid()
        return record


def _request(request: str | Named) -> str:
    return f',"request":{quote(request if isinstance(request, str) else request.id, 128)}'


def _shown(actor: Actor) -> tuple[str, ...]:
    """What of an actor stands in a record. Its own hash, which attrs computes in Python, costs 1 µs."""
    return (actor.type, actor.id, actor.auth, actor.session, actor.on_behalf_of)


def _keep(cache: dict[Any, str], key: Any, value: str) -> None:
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    cache[key] = value
