"""The outermost layer: one record per finished request, taken on the serving loop and written out by the journal.

It holds nothing back under guarantee `batch`: the record is appended when the request is over. What the other
guarantees hold is in `guarantees`, what looks at bodies in `bodies`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable
from time import monotonic as _monotonic
from urllib.parse import parse_qsl

from deia_audit.bodies import BodyWatch, watch_receive, watch_send
from deia_audit.escape import plain_map, quote, quoted
from deia_audit.guarantees import HeldSend, changing, unavailable
from deia_audit.policy import Level, Policy
from deia_audit.recognise import CHAT, MCP, OPENAI, mcp_outcome, recognise
from deia_audit.service import AuditLogger
from deia_audit.settings import AuditSettings
from deia_audit.usage import usage
from deia_hardening.context import ANONYMOUS, SCOPE_KEY, RequestContext
from deia_hardening.journal import Receipt
from deia_hardening.plugin import ASGIApp, Exchange, Problem, Receive, Routes, Scope, Send, route_path
from deia_hardening.texts import header_text


class AuditMiddleware:
    """Records HTTP requests and WebSockets of one revision."""

    def __init__(self, app: ASGIApp, logger: AuditLogger, settings: AuditSettings, policy: Policy) -> None:
        self.app = app
        self.logger = logger
        self.policy = policy
        self.settings = settings
        self.plain = policy.trivial and not policy.patterns and settings.guarantee != "response"
        self.plain = self.plain and not (settings.headers or settings.query)
        self.protocols = {
            **dict.fromkeys(settings.mcp, MCP),
            **dict.fromkeys(settings.openai, OPENAI),
            **dict.fromkeys(settings.chat, CHAT),
        }
        self.bodies = policy.highest >= Level.REQUEST
        self.kept = bool(settings.headers or settings.query)
        self.holds = settings.guarantee == "response"
        self.intends = settings.guarantee == "intent" and settings.on_failure == "refuse"
        self.refuse = settings.on_failure == "refuse"
        self.reasons = Routes((pattern, pattern.rpartition(" ")[2]) for pattern in settings.require_reason)
        self.careful = self.bodies or self.holds or self.intends or not self.reasons.empty
        """Whether something may have to be awaited before the app is called."""
        self.quick = self.plain and not self.careful
        self.special = policy.exact | self.protocols.keys()
        """Paths of calls that are more than told of when they are over."""
        self._over = self.over

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Most requests are told of by callbacks, without a coroutine of our own around the app.
        context: RequestContext = scope[SCOPE_KEY]
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        if self.quick and path not in self.special and scope["type"] == "http" and not self.logger.encrypts:
            context.on_end(self._over)
            return self.app(scope, receive, send)
        call = Call(self, context, path)
        context.on_end(call.finish)
        if scope["type"] == "websocket":
            context.on_start(call.opened)
        if self.careful or self.logger.encrypts or path in self.protocols:
            return self._carefully(call, context, scope, receive, send)
        return self.app(scope, receive, send)

    def over(self, context: RequestContext) -> None:
        """Append the record of a request that is over, and of which nothing but that is told."""
        if 100 < context.status < 400 and context.complete:
            logger = self.logger
            logger.append(logger.assembler.take(context, logger.now_ns()))
        else:
            Call(self, context, "").finish(context)  # its path is not special

    async def _carefully(self, call: Call, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.reasons.empty and not context.reason and (asked := self.reasons.match(scope, "")):
            context._route = asked  # it is refused before anything routes it
            await self._ask_reason(scope, send)
            return
        logger = self.logger
        logger.look()
        if logger.encrypts and context.actor is not ANONYMOUS and not logger.assembler.knows(context.actor):
            await logger.meet(context.actor)
        if (self.bodies or route_path(scope) in self.protocols) and scope["type"] == "http":
            await logger.prepare(context.actor)
            receive, send = self._look(call, scope, receive, send)
        if self.holds:
            if self.refuse and not self.logger.journal.health().ok:
                await unavailable().send(send, websocket=scope["type"] == "websocket")
                return
            send = HeldSend(call, send, self.settings)
        elif self.intends and changing(scope, context):
            send = HeldSend(call, send, self.settings)
        await self.app(scope, receive, send)

    def _look(self, call: Call, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Watch bodies where the policy or a recogniser asks for it."""
        path, method = route_path(scope), scope["method"]
        protocol = self.protocols.get(path) if method == "POST" else None
        level = self.policy.bodies(method, path) if self.bodies else Level.METADATA
        if protocol is None and level < Level.REQUEST:
            return receive, send
        limit = int(self.settings.body_limit)
        key = self.logger.body_key(call.context.actor) if level >= Level.REQUEST else None
        call.protocol = protocol
        call.request = BodyWatch(key, limit)
        call.request.packed(scope["headers"])
        receive = watch_receive(receive, call.request)
        if level >= Level.RESPONSE or protocol in (OPENAI, MCP):
            call.response = BodyWatch(key, limit, limit if protocol in (OPENAI, MCP) else 0)
            send = watch_send(send, call.response)
        return receive, send

    async def _ask_reason(self, scope: Scope, send: Send) -> None:
        problem = Problem(
            400,
            "This call must say why it is made: send the header Deia-Reason with a short text. Nothing was changed.",
            extensions={"header": "Deia-Reason"},
        )
        await problem.send(send, websocket=scope["type"] == "websocket")


class Call:
    """One request on its way: what its record will need that the context doesn't hold."""

    # Defaults stand on the class: most requests set none of them.
    recorded = False
    protocol: str | None = None
    request: BodyWatch | None = None
    response: BodyWatch | None = None

    def __init__(self, layer: AuditMiddleware, context: RequestContext, path: str) -> None:
        self.layer = layer
        self.context = context
        self.path = path

    def record_start(self, status: int) -> Receipt | None:
        """Append the result of an answer that is about to start; None where the policy keeps no record of it."""
        self.recorded = True
        context = self.context
        method = context.scope.get("method") or "WEBSOCKET"
        if self._level(self.layer.policy, method, status) is Level.NONE:
            return None
        return self.layer.logger.http(context, "result", status=status)

    def finish(self, exchange: Exchange) -> None:
        """Append the record of the request that is over; that of a server error waits for the call's exception."""
        if exchange.status >= 500 and exchange.complete and self.context.error is None:
            self.context.on_return(lambda: self.write(exchange))
        else:
            self.write(exchange)

    def write(self, exchange: Exchange) -> None:
        """Append the record, unless the policy or a flood says otherwise."""
        context = self.context
        layer = self.layer
        logger = layer.logger
        scope = context.scope
        method = scope.get("method") or "WEBSOCKET"
        status = exchange.status
        level = self._level(layer.policy, method, status)
        if level is Level.NONE:
            return
        if (
            (400 <= status < 500 or status == 503)
            and context.actor is ANONYMOUS
            and not logger.flood.passes(status, context.route, _monotonic())
        ):
            logger.flooded()
            return
        stage = "aborted" if not exchange.complete else "end" if self.recorded else "result"
        inside = self._digests(level)
        if method == "WEBSOCKET" and status == 101:
            stage = "end" if exchange.complete else "aborted"
            code = exchange.close_code  # the app's own, whatever it is
            inside = f',"close":{code:d}' if isinstance(code, int) else f',"close":{quote(str(code), 32)}'
        logger.http(context, stage, self._extra(level), inside)

    def _level(self, policy: Policy, method: str, status: int) -> Level:
        path = self.path
        if policy.probe(method, path):
            return Level.NONE
        if policy.trivial:
            return Level.METADATA
        context = self.context
        effects = bool(context.revision.effects.match(context.scope, False))
        return policy.level(method, path, context.actor, status, effects, random.random)

    def _extra(self, level: Level) -> bytes:
        """Return the members that come from bodies, headers and the query string, as far as the settings allow."""
        settings, scope = self.layer.settings, self.context.scope
        extra = b""
        if self.request is not None:
            logger = self.layer.logger
            logger.look()
            if self.protocol is not None:
                digest = logger.digest_for(self.context.actor)
                answered = self.response.first if self.response is not None else b""
                extra += recognise(self.protocol, self.request.first, scope["headers"], self._used(), digest, answered)
            encrypt = logger.encryption_for(self.context.actor) if settings.body_text else None
            if level >= Level.REQUEST:
                extra += b',"request_body":{%b}' % self.request.members(text=settings.body_text, encrypt=encrypt)
            if self.response is not None and level >= Level.RESPONSE:
                extra += b',"response_body":{%b}' % self.response.members(text=settings.body_text, encrypt=encrypt)
        if self.layer.kept:
            extra += kept_parts(scope, settings)
        return extra

    def _digests(self, level: Level) -> str:
        """Return the member `digest` of `http`: of each body that the policy has looked at."""
        watched = (("request", self.request, Level.REQUEST), ("response", self.response, Level.RESPONSE))
        found = [
            f'"{name}":"{watch.digest}"' for name, watch, least in watched if watch and level >= least and watch.digest
        ]
        return f',"digest":{{{",".join(found)}}}' if found else ""

    def _used(self) -> bytes:
        """Return what an answer says of its call: a tool's outcome; what a model used and when its first byte came."""
        answer = self.response
        if answer is None or not answer.size:
            return b""
        if self.protocol == MCP:
            status = self.context.status
            if answer.stopped and status < 400:
                return b""
            return mcp_outcome(answer.first, answer.last, answer.seen, status)
        told = usage(answer.first, answer.last)
        first = b'"first_ms":%.3f' % ((answer.began - self.context.received) * 1000)
        return b"%b,%b" % (told, first) if told else first

    def opened(self, exchange: Exchange) -> None:
        """Append the record of a WebSocket that was accepted."""
        if exchange.status == 101 and not self.recorded:
            self.layer.logger.http(self.context, "result", b',"event":"open"')


def _join(found: dict[str, str], name: str, value: str) -> None:
    """Keep a value beside those that came before it under the same name."""
    found[name] = f"{found[name]}, {value}" if name in found else value


def kept_parts(scope: Scope, settings: AuditSettings) -> bytes:
    """Return the headers and query parameters that the settings list; of other parameters only the names."""
    extra = b""
    wanted = {name.lower().encode("latin-1"): name for name in settings.headers}
    headers: dict[str, str] = {}
    for raw_name, value in scope["headers"]:
        if raw_name in wanted:
            _join(headers, wanted[raw_name], header_text(value, 257))
    if headers:
        extra += b',"headers":%b' % plain_map(headers)
    raw = scope.get("query_string", b"")
    if raw and settings.query:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)[:64]
        kept: dict[str, str] = {}
        for name, value in pairs:
            if name in settings.query:
                _join(kept, name, value)
        # What has no value may be one itself: `?<token>`.
        others = sorted({f"query.{name[:64]}" if value else "query" for name, value in pairs if name not in kept})
        extra += b',"query":%b' % plain_map(kept)
        if others:
            extra += b',"redacted":[%b]' % b",".join(quoted(name) for name in others)
    return extra
