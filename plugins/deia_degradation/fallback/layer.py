"""The late layer: routes that bots answer, each request given to a bot of its pool.

A route may name the bot (`/api/bots/{bot_id}/task`) or leave it to the pool; when the named one can't serve, a
healthy one does. A bot that the pool does not know is the app's business, and so is every other route.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from deia_degradation.accept import accept_task
from deia_degradation.fallback.forward import Forward
from deia_degradation.gatekeeping import refuse
from deia_degradation.pool.bot import Member, Verdict
from deia_degradation.pool.pool import Pool
from deia_degradation.settings import DegradationSettings
from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import ASGIApp, Message, Problem, Receive, RequestContext, Routes, Scope, Send, route_path
from deia_hardening.upstream import Outcome, UpstreamError, outcome_of

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

_NOTHING: frozenset[bytes] = frozenset()


@attrs.frozen
class PoolRoute:
    """A route that a pool answers; `index` is the path segment that names the bot, -1 for none."""

    pool: Pool
    index: int
    path: str
    affinity: str


class BotLayer:
    """The INNER layer of one revision."""

    def __init__(self, app: ASGIApp, manager: DegradationManager, settings: DegradationSettings) -> None:
        self.app = app
        self.manager = manager
        header = settings.admission.criticality_header.lower().encode("latin-1")
        # A bot may believe these of us, its proxy: so a client's own are not passed on.
        self._believed = frozenset({b"x-request-timeout", header} - {b""})
        self.routes: Routes[PoolRoute] = Routes(
            (text, _route(manager.pool_for(name, pool), text, pool.bot_parameter, pool.forward, pool.affinity))
            for name, pool in settings.pools.items()
            for text in pool.routes
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of our own around what is the app's.
        route: PoolRoute | None = self.routes.match(scope)
        if route is None:
            return self.app(scope, receive, send)
        named = ""
        if route.index >= 0:
            named = route_path(scope).split("/")[route.index]
            if route.pool.member(named) is None:
                return self.app(scope, receive, send)
        return self._serve(route, named, scope, receive, send)

    async def _serve(self, route: PoolRoute, named: str, scope: Scope, receive: Receive, send: Send) -> None:
        pool = route.pool
        context: RequestContext = scope[SCOPE_KEY]
        path = route.path.replace("{bot}", named) if route.path else ""
        key = self._key(route.affinity, scope, context) if route.affinity else None
        if scope["type"] == "websocket":
            await self._websocket(pool, named, key, path, scope, receive, send, context)
            return
        drop = _NOTHING if context.trusted else self._believed
        forward = Forward(pool, self.manager.watcher, scope, receive, send, context, path, key, named, drop)
        if await forward.run():
            return
        if not (
            pool.settings.accept
            and forward.body.replayable
            and await accept_task(self.manager, scope, forward.body.reader(), send, context)
        ):
            await refuse(_nobody(pool), scope, send)

    def _key(self, affinity: str, scope: Scope, context: RequestContext) -> str | None:
        kind, _, name = affinity.partition(":")
        if kind == "actor":
            return context.actor.id or None
        if kind == "client":
            client = scope.get("client")
            return client[0] if client else None
        wanted = name.lower().encode("latin-1") if kind == "header" else b"cookie"
        for header, value in scope["headers"]:
            if header == wanted:
                if kind == "header":
                    return value[:256].decode("latin-1") or None
                found = _cookie(value.decode("latin-1"), name)
                if found:
                    return found[:256]
        return None

    async def _websocket(
        self, pool: Pool, named: str, key: str | None, path: str, scope: Scope, receive: Receive, send: Send,
        context: RequestContext,
    ) -> None:  # fmt: skip
        """A WebSocket goes to one bot; to another only while nothing was sent to the first."""
        tried: list[Member] = []
        member = pool.take(named, monotonic()) if named else None
        while True:
            if member is None:
                member = pool.choose(monotonic(), exclude=tried, key=key)
            if member is None:
                await refuse(_nobody(pool), scope, send)
                return
            tried.append(member)
            child = dict(scope)
            if path:
                child["path"] = path
                child["raw_path"] = path.encode("utf-8")
                child["root_path"] = ""
            started = monotonic()
            context.bot = member.bot.id
            client = _Client(send)
            try:
                await member.target(child, receive, client.send)
            except Exception as error:
                outcome = outcome_of(error, started=context.started > 0.0)
                verdict = Verdict.NEUTRAL if client.left or context.disconnected else Verdict.FAILED
                pool.done(member, monotonic(), monotonic() - started, verdict, type(error).__name__)
                again = outcome is Outcome.NOT_SENT and isinstance(error, UpstreamError) and not error.consumed
                if not again or len(tried) > pool.retry.policy.attempts:
                    raise
                member = None
                continue
            except BaseException:
                pool.done(member, monotonic(), 0.0, Verdict.NEUTRAL)
                raise
            answered, status = context.started, context.status
            failed = pool.judge.fails(status)  # of a handshake that was denied
            verdict = Verdict.FAILED if failed else Verdict.GOOD if answered else Verdict.NEUTRAL
            pool.done(member, monotonic(), max(0.0, answered - started), verdict, f"status {status}" if failed else "")
            return


class _Client:
    """What a WebSocket's bot sends to: it tells the client's end from the bot's."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.left = False

    async def send(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.left = True
            raise


def _nobody(pool: Pool) -> Problem:
    return Problem(
        503,
        f"No bot of the pool '{pool.name}' can answer now; nothing was sent. Try again later.",
        retry_after=max(1.0, pool.retry_after(monotonic())),
    )


def _route(pool: Pool, text: str, parameter: str, path: str, affinity: str) -> PoolRoute:
    segments = text.rpartition(" ")[2].split("/")
    mark = "{" + parameter + "}"
    return PoolRoute(pool, segments.index(mark) if mark in segments else -1, path, affinity)


def _cookie(header: str, name: str) -> str:
    for pair in header.split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value
    return ""
