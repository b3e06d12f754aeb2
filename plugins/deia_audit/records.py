"""The bytes of one record: precomputed fragments for what repeats, JSON escapes for what a client sent.

A record is assembled once, on the caller, and never serialised again: its bytes are the leaf of the tree.
`http` costs some 3 µs. Caches are bounded and dropped whole when full, so no client can make them grow.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from deia_audit.escape import quoted, quoted_header
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

    def next(self) -> str:
        milliseconds = time.time_ns() // 1_000_000
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


def _worker_part() -> bytes:
    return b'"boot":"%b","worker":%d' % (_boot_id.encode(), os.getpid())


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
        self._actors: dict[Actor, bytes] = {}
        self._calls: dict[tuple[str, str, int, bool, str], bytes] = {}
        self._peers: dict[str, bytes] = {}
        self._agents: dict[bytes, bytes] = {}
        self._modes: dict[tuple[str, str], bytes] = {}
        self._kinds: dict[str, bytes] = {}
        self.subject: Callable[[str], str] = str
        self.address: Callable[[str], str] = str
        self.user_agent = True

    def reset(self) -> None:
        """Forget the fragments, after settings changed what they hold."""
        for cache in (self._actors, self._calls, self._peers, self._agents, self._modes):
            cache.clear()

    def knows(self, actor: Actor) -> bool:
        """Whether an actor's fragment is ready."""
        return actor in self._actors

    # -- fragments --

    def actor(self, actor: Actor) -> bytes:
        """Return `"actor":{…}`."""
        found = self._actors.get(actor)
        if found is None:
            parts = [b'"type":' + quoted(actor.type)]
            if actor.id:  # the service itself is no person
                parts.append(b'"id":' + quoted(actor.id if actor.type == SYSTEM.type else self.subject(actor.id)))
            for name in ("auth", "session", "on_behalf_of"):
                value = getattr(actor, name)
                if value:
                    value = self.subject(value) if name == "on_behalf_of" else value
                    parts.append(b'"%b":%b' % (name.encode(), quoted(value)))
            found = b'"actor":{' + b",".join(parts) + b"}"
            _keep(self._actors, actor, found)
        return found

    def call(self, method: str, route: str, status: int, failed: bool, stage: str) -> bytes:
        """Return what method, route, status and stage determine, up to inside of `"http":{`."""
        key = (method, route, status, failed, stage)
        found = self._calls.get(key)
        if found is None:
            known = method if method in _OPS else "OTHER"
            outcome = outcome_of(status, error=failed)
            if stage == "intent":
                outcome = "pending"
            found = (
                b'"kind":"http","stage":"%b","action":%b,"op":"%b","outcome":"%b","level":"%b","http":{"method":%b'
                % (
                    stage.encode(),
                    quoted(f"{known} {route or UNMATCHED}"),
                    _OPS.get(method, "other").encode(),
                    outcome.encode(),
                    level_of(outcome, status).encode(),
                    quoted(method, 32),
                )
            )
            if status:
                found += b',"status":%d' % status
            _keep(self._calls, key, found)
        return found

    def source(self, client: Any, agent: bytes | None) -> bytes:
        """Return `"src":{…}` of the peer's address and the user agent."""
        address = str(client[0]) if client else ""
        peer = self._peers.get(address)
        if peer is None:
            shown = self.address(address)
            peer = b'"ip":' + quoted(shown, 64) if shown else b""
            _keep(self._peers, address, peer)
        if agent is None or not self.user_agent:
            return b'"src":{%b}' % peer
        text = self._agents.get(agent)
        if text is None:
            text = b'"ua":' + quoted_header(agent, 256)
            _keep(self._agents, agent, text)
        return b'"src":{%b,%b}' % (peer, text) if peer else b'"src":{%b}' % text

    def mode(self, mode: str, version: str) -> bytes:
        """Return `"mode":…` and, where there is one, `"version":…`."""
        key = (mode, version)
        found = self._modes.get(key)
        if found is None:
            found = b'"mode":"%b"' % mode.encode()
            if version:
                found += b',"version":' + quoted(version)
            _keep(self._modes, key, found)
        return found

    # -- records --

    def http(
        self,
        context: RequestContext,
        stage: str,
        agent: bytes | None,
        trace: bytes | None,
        extra: bytes = b"",
        inside: bytes = b"",
        status: int = 0,
    ) -> bytes:
        """Return the body of a request's record.

        `extra` are further members, `inside` further ones of `http`.
        """
        scope = context.scope
        exchange = context.exchange
        error = context.error
        own = ids.next()
        request = context._id
        if request is None:
            context._id = own
        elif request != own:
            extra = b'%b,"request":%b' % (extra, quoted(request, 128))
        failed = error is not None and not (exchange.complete and exchange.status)
        route = context.route
        parameters = scope.get("path_params")
        if parameters:
            name = next(reversed(parameters))
            kind = self._kinds.get(name)
            if kind is None:
                kind = quoted(str(name).removesuffix("_id"), 64)
                _keep(self._kinds, name, kind)
            extra = b'%b,"target":{"type":%b,"id":%b}' % (extra, kind, quoted(str(parameters[name]), 256))
        if trace is not None:
            extra = b'%b,"trace":"%b"' % (extra, trace)
        if context.reason:
            extra = b'%b,"reason":%b' % (extra, quoted(context.reason))
        if error is not None:
            extra = b'%b,"error":%b' % (extra, quoted(type(error).__qualname__, 128))
        claims = context._claims
        if claims:
            extra = b'%b,"claims":%b' % (extra, plain_map(claims))
        if context.bot:
            extra = b'%b,"bot":%b' % (extra, quoted(context.bot, 128))
        ended = exchange.ended
        if ended:
            inside = b'%b,"ms":%.3f,"bytes":%d' % (inside, (ended - context.received) * 1000, exchange.bytes_out)
        else:
            ended = context.received
        actor = context.actor
        return b'"id":"%b",%b,"path":%b%b},%b,%b,%b%b,"mono":%d,%b' % (
            own.encode(),
            self.call(scope.get("method") or "WEBSOCKET", route, status or exchange.status, failed, stage),
            quoted(scope["path"]),
            inside,
            _ANONYMOUS if actor is ANONYMOUS else self.actor(actor),
            self.source(scope.get("client"), agent),
            self.mode(context.mode, context.version),
            extra,
            ended * 1e6,
            _tail,
        )

    def event(self, members: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
        """Return the members of a record that is not a request's, ready for the journal's encoder."""
        record: dict[str, Any] = {"id": ids.next(), **members}
        record.setdefault("actor", msgspec.Raw(b"{" + self.actor(actor).partition(b"{")[2]))
        record["mono"] = int(time.monotonic() * 1e6)
        record["boot"] = _boot_id
        record["worker"] = os.getpid()
        return record


def plain_map(values: Mapping[str, str]) -> bytes:
    """Return a JSON object of texts."""
    return b"{%b}" % b",".join(b"%b:%b" % (quoted(name, 64), quoted(value, 256)) for name, value in values.items())


def _keep(cache: dict[Any, bytes], key: Any, value: bytes) -> None:
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    cache[key] = value


_ANONYMOUS = Assembler().actor(ANONYMOUS)
