"""The bytes of one record: precomputed fragments for what repeats, JSON escapes for what a client sent.

A record is assembled once, on the caller, and never serialised again: its bytes are the leaf of the tree.
`http` costs some 2 µs. Caches are bounded and dropped whole when full, so no client can make them grow.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from deia_audit.escape import quote, quote_header, quoted
from deia_hardening.context import ANONYMOUS, SYSTEM, Actor, RequestContext

CACHE_LIMIT = 4096
UNMATCHED = "(unmatched)"
_OPS: Final = {
    "GET": "read", "HEAD": "read", "OPTIONS": "read", "TRACE": "read", "POST": "create", "PUT": "update",
    "PATCH": "update", "DELETE": "delete", "CONNECT": "other", "WEBSOCKET": "stream",
}  # fmt: skip
READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_REFUSALS: Final = frozenset({401, 403, 405, 407, 429, 503})


_HEX3: Final = tuple(f"{number:03x}" for number in range(4096))


class Ids:
    """UUIDv7 as text, 0.3 µs: the time, a process-wide counter and 36 random bits of this process. Thread-safe.

    The counter's low 12 bits stand where they order what came in one millisecond; the rest changes every 4096.
    """

    def __init__(self) -> None:
        self._count = itertools.count(int.from_bytes(os.urandom(4), "big"))
        self._random = f"-{0x8 | os.urandom(1)[0] & 0x3:x}{os.urandom(2).hex()[:3]}-{os.urandom(3).hex()}"
        self._milliseconds = 0
        self._prefix = self._suffix = ""

    def next(self, now_ns: int = 0) -> str:
        """Return a new id; `now_ns` is the time where the caller has just looked at it."""
        milliseconds = (now_ns or time.time_ns()) // 1_000_000
        number = next(self._count)
        low = number & 0xFFF
        if milliseconds != self._milliseconds or not low:
            text = f"{milliseconds:012x}"
            self._prefix = f"{text[:8]}-{text[8:]}-7"
            self._suffix = f"{self._random}{number >> 12 & 0xFFFFFF:06x}"
            self._milliseconds = milliseconds
        return self._prefix + _HEX3[low] + self._suffix


ids = Ids()


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
    global ids, _tail
    ids = Ids()
    _tail = _worker_part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def outcome_of(status: int, *, error: bool) -> str:
    """Return success, refused or failure for an answer; 0 is an answer that never started."""
    if error or status == 0 or (status >= 500 and status != 503):
        return "failure"
    if status < 400:
        return "success"
    return "refused" if status in _REFUSALS else "failure"


def level_of(outcome: str, status: int = 0) -> str:
    """Return the level of a record: what the client got wrong is a warning, what the service did an error."""
    if outcome in ("success", "pending"):
        return "info"
    return "warning" if outcome == "refused" or 400 <= status < 500 else "error"


class Assembler:
    """Makes records' bodies for one app. Callable from any thread; `subject` may replace actors' ids."""

    def __init__(self) -> None:
        self._actors: dict[tuple[str, ...], str] = {}
        self._calls: dict[tuple[str, str, int, bool, str], str] = {}
        self._agents: dict[bytes, str] = {}
        self._who: dict[tuple[Any, ...], str] = {}
        self._kinds: dict[str, str] = {}
        self.subject: Callable[[str], str] = str
        self.address: Callable[[str], str] = str
        self.user_agent = True
        self.shows_query = False

    def reset(self) -> None:
        """Forget the fragments, after settings changed what they hold."""
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
                parts.append('"id":' + quote(actor.id if actor.type == SYSTEM.type else self.subject(actor.id)))
            for name in ("auth", "session", "on_behalf_of"):
                value = getattr(actor, name)
                if value:
                    value = self.subject(value) if name == "on_behalf_of" else value
                    parts.append(f'"{name}":{quote(value)}')
            found = '"actor":{' + ",".join(parts) + "}"
            _keep(self._actors, key, found)
        return found

    def call(self, key: tuple[str, str, int, bool, str]) -> str:
        """Return what method, route, status, failure and stage determine, up to inside of `"http":{`."""
        method, route, status, failed, stage = key
        known = method if method in _OPS else "OTHER"
        outcome = outcome_of(status, error=failed)
        if stage == "intent":
            outcome = "pending"
        found = (
            f'"kind":"http","stage":"{stage}","action":{quote(f"{known} {route or UNMATCHED}")},'
            f'"op":"{_OPS.get(method, "other")}","outcome":"{outcome}","level":"{level_of(outcome, status)}",'
            f'"http":{{"method":{quote(method, 32)}'
        )
        if status:
            found += f',"status":{status}'
        _keep(self._calls, key, found)
        return found

    def source(self, address: str, agent: bytes | None) -> str:
        """Return `"src":{…}` of the peer's address and the user agent."""
        parts = []
        shown = self.address(address)
        if shown:
            parts.append('"ip":' + quote(shown, 64))
        if agent is not None and self.user_agent:
            text = self._agents.get(agent)
            if text is None:
                text = '"ua":' + quote_header(agent, 256)
                _keep(self._agents, agent, text)
            parts.append(text)
        return '"src":{' + ",".join(parts) + "}"

    def who(self, key: tuple[Any, ...], context: RequestContext, address: str, agent: bytes | None) -> str:
        """Return `"actor":{…},"src":{…},"mode":…` and, where there is one, `"version":…`."""
        found = f'{self.actor(context.actor)},{self.source(address, agent)},"mode":"{context.mode}"'
        if context.version:
            found += ',"version":' + quote(context.version)
        _keep(self._who, key, found)
        return found

    # -- records --

    def http(
        self,
        context: RequestContext,
        stage: str,
        agent: bytes | None,
        trace: bytes | None,
        extra: bytes = b"",
        inside: str = "",
        status: int = 0,
        now_ns: int = 0,
    ) -> bytes:
        """Return the body of a request's record.

        `extra` are further members, `inside` further ones of `http`; `now_ns` is the record's time.
        """
        scope = context.scope
        exchange = context.exchange
        error = context.error
        own = ids.next(now_ns)
        request = context._id
        more = ""
        if request is None:
            context._id = own
        elif request != own:
            more = ',"request":' + quote(request, 128)
        key = (
            scope.get("method") or "WEBSOCKET",
            context._route or context.route,
            status or exchange.status,
            error is not None and not (exchange.complete and exchange.status),
            stage,
        )
        call = self._calls.get(key) or self.call(key)
        parameters = scope.get("path_params")
        if parameters:
            name = next(reversed(parameters))
            kind = self._kinds.get(name)
            if kind is None:
                kind = quote(str(name).removesuffix("_id"), 64)
                _keep(self._kinds, name, kind)
            more = f'{more},"target":{{"type":{kind},"id":{quote(str(parameters[name]), 256)}}}'
        if trace is not None:
            more = f'{more},"trace":"{trace.decode("ascii")}"'
        if scope.get("query_string") and not self.shows_query:
            more = f'{more},"redacted":["query"]'
        if context.reason:
            more = f'{more},"reason":{quote(context.reason)}'
        if error is not None:
            more = f'{more},"error":{quote(type(error).__qualname__, 128)}'
        claims = context._claims
        if claims:
            more = f'{more},"claims":{plain_map(claims).decode("ascii")}'
        if context.bot:
            more = f'{more},"bot":{quote(context.bot, 128)}'
        ended = exchange.ended
        if ended:
            inside = f'{inside},"ms":{(ended - context.received) * 1000:.3f},"bytes":{exchange.bytes_out}'
        else:
            ended = context.received
        client = scope.get("client")
        address = str(client[0]) if client else ""
        actor = context.actor
        whole: tuple[Any, ...] = (address, agent, context.mode, context.version)
        if actor is not ANONYMOUS:
            whole += _shown(actor)
        who = self._who.get(whole) or self.who(whole, context, address, agent)
        head = f'"id":"{own}",{call},"path":{quote(scope["path"])}{inside}}},{who}'
        tail = f'{more},"mono":{int(ended * 1e6)},{_tail}'
        if extra:
            return head.encode("ascii") + extra + tail.encode("ascii")
        return (head + tail).encode("ascii")

    def event(self, members: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        """Return the members of a record that is not a request's, ready for the journal's encoder."""
        record: dict[str, Any] = {"id": ids.next(), **members}
        record.setdefault("actor", msgspec.Raw(self.actor(actor).removeprefix('"actor":').encode("ascii")))
        record["mono"] = int(time.monotonic() * 1e6)
        record["boot"] = _boot_id
        record["worker"] = os.getpid()
        return record


def plain_map(values: Mapping[str, str]) -> bytes:
    """Return a JSON object of texts."""
    return b"{%b}" % b",".join(b"%b:%b" % (quoted(name, 64), quoted(value, 256)) for name, value in values.items())


def _shown(actor: Actor) -> tuple[str, ...]:
    """What of an actor stands in a record. Its own hash, which attrs computes in Python, costs 1 µs."""
    return (actor.type, actor.id, actor.auth, actor.session, actor.on_behalf_of)


def _keep(cache: dict[Any, str], key: Any, value: str) -> None:
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    cache[key] = value
