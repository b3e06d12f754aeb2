"""The layer at ROUTE: each request to the version it belongs to.

With no rollout a request falls through to the app. During one it is sent to the candidate or to the stable version,
kept in a table of flights while it runs, and told to the judge when it has ended. A candidate that can't be reached
costs nobody an answer: the stable version takes the request at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import ASGIApp, Exchange, Message, Problem, Receive, RequestContext, Scope, Send
from deia_hardening.upstream import FailedBeforeStart, NotSent
from deia_migration.choose import Chooser
from deia_migration.ending import RETRY_AFTER, end_politely
from deia_migration.mirror import Mirror
from deia_migration.outcome import BodyCheck, BodyRules, Outcome, outcome_of_flight, told
from deia_migration.shield import Shield
from deia_migration.sources import SessionSource
from deia_migration.traffic import Flight, Live, Router, Version

_monotonic = time.monotonic
_current_task = asyncio.current_task

Tell = Callable[[Outcome], None]


class Rules:
    """What one revision says about routing; made once per revision."""

    __slots__ = ("body", "chooser", "mirror", "shield", "statuses")

    def __init__(
        self, chooser: Chooser, body: BodyRules, statuses: frozenset[int], shield: bool, mirror: Mirror | None = None
    ) -> None:
        self.chooser = chooser
        self.body = body if body.wanted else None
        self.statuses = statuses
        self.shield = shield
        self.mirror = mirror


class SplitLayer:
    """One revision's layer around `app`, which is the stable version unless another was promoted."""

    __slots__ = ("_app", "_router", "_rules", "_state", "_tell")

    def __init__(self, app: ASGIApp, router: Router, rules: Rules, tell: Tell) -> None:
        self._app = app
        self._router = router
        self._rules = rules
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self._router
        state = router.state()
        if state is not router.seen:
            router.refresh(state)
        live = router.live
        context: RequestContext = scope[SCOPE_KEY]
        if live is None:
            base = router.base
            if base.answer is not None:
                context.version = base.name
            await self._fly(base, Flight(context, 0.0, False, -1.0), scope, receive, send)
            return
        rules = self._rules
        new, weight, source = rules.chooser.choose(live, scope, context)
        version = live.candidate if new else live.stable
        context.version = version.label
        flight = Flight(context, _monotonic(), new, weight)
        if rules.mirror is not None and not new and weight >= 0:
            receive, send = rules.mirror.take(live, version.answer or self._app, scope, receive, send)
        if source is None:
            send = self._learning(version, weight, scope, context, send)
        check: BodyCheck | None = None
        if rules.body is not None and 0 < weight < 1 and scope["type"] == "http":
            check = BodyCheck(rules.body, scope, send)
            send = check
        error: BaseException | None = None
        try:
            if new:
                await self._new(live, flight, scope, receive, send)
            else:
                await self._fly(version, flight, scope, receive, send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if flight.weight >= 0:
                bad = check is not None and check.bad
                long = context.revision.long.match(scope, False)
                outcome = outcome_of_flight(flight, error, rules.statuses, bad, long)
                if outcome is not None:
                    self._tell(outcome)
            ending = source is not None and source.ends and scope.get("method") == "DELETE"
            if ending and source is not None and 200 <= context.exchange.status < 300:
                rules.chooser.end(source, scope, context)

    # -- to a version ---------------------------------------------------------------------------------------

    async def _fly(self, version: Version, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        """Call a version, with the request in its table of flights."""
        try:
            flight.task = _current_task()
        except RuntimeError:
            await self._fly_trio(version, flight, scope, receive, send)
            return
        flights = version.flights
        flights[flight] = None
        try:
            await (version.answer or self._app)(scope, receive, send)
        except asyncio.CancelledError:
            if not flight.cutting:
                raise
            if flight.task is not None:
                flight.task.uncancel()
            await end_politely(flight.context.exchange, send, websocket=scope["type"] == "websocket")
        finally:
            flights.pop(flight, None)

    async def _fly_trio(self, version: Version, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        import trio

        version.flights[flight] = None
        try:
            with trio.CancelScope() as cancel:
                flight.token = (trio.lowlevel.current_trio_token(), cancel)
                await (version.answer or self._app)(scope, receive, send)
            if cancel.cancelled_caught and flight.cutting:
                await end_politely(flight.context.exchange, send, websocket=scope["type"] == "websocket")
        finally:
            version.flights.pop(flight, None)

    async def _new(self, live: Live, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the candidate; the stable version answers what the candidate could not take."""
        context = flight.context
        method = scope.get("method")
        if (
            self._rules.shield
            and (method == "GET" or method == "HEAD")
            and not context.revision.effects.match(scope, False)
        ):
            shield = Shield(scope, receive, send)
            if shield.possible:
                await self._shielded(live, flight, scope, shield)
                return
        try:
            await self._fly(live.candidate, flight, scope, receive, send)
        except NotSent as error:
            self._count(flight)
            if error.consumed:
                await _gateway(context.exchange, scope, send)
                return
            context.version = live.stable.label
            await self._fly(live.stable, flight, scope, receive, send)
        except FailedBeforeStart:
            self._count(flight)
            await _gateway(context.exchange, scope, send)

    async def _shielded(self, live: Live, flight: Flight, scope: Scope, shield: Shield) -> None:
        """Let the candidate try; what fails with nothing sent yet is answered by the stable version."""
        try:
            await self._fly(live.candidate, flight, scope, shield.receive, shield.send)
        except Exception:
            if shield.started:
                raise
            shield.failed = True
        if not shield.failed and not shield.silent:
            return
        if flight.context.exchange.disconnected or flight.context.exchange.complete:
            return
        self._count(flight)  # first it counts, then it is mended
        flight.context.version = live.stable.label
        flight.context.scope = shield.scope
        await self._fly(live.stable, flight, shield.scope, shield.receive_again, shield.pass_on)

    def _count(self, flight: Flight) -> None:
        """Tell the judge of a failure of the candidate, once."""
        if not flight.counted and flight.weight >= 0:
            self._tell(told(flight, True, -1.0))
        flight.counted = True

    # -- sessions -------------------------------------------------------------------------------------------

    def _learning(self, version: Version, weight: float, scope: Scope, context: RequestContext, send: Send) -> Send:
        """Have the answer looked at for a session that it issues."""
        chooser = self._rules.chooser
        if chooser.learners:
            context.exchange.on_start(partial(self._from_headers, version.number, weight))
        for source in chooser.looks_at_bodies:
            if not source.prefix or scope["path"].startswith(source.prefix):
                return _BodyLearner(chooser, source, version.number, weight, send)
        return send

    def _from_headers(self, version: int, weight: float, exchange: Exchange) -> None:
        message = exchange.start
        if message is None:
            return
        headers = message.get("headers", ())
        chooser = self._rules.chooser
        for source in chooser.learners:
            if source.from_headers is not None:
                session = source.from_headers(headers)
                if session:
                    chooser.learn(source, session, version, weight)


class _BodyLearner:
    """Looks for a session id in an answer's first bytes, before the client sees them; then only passes on."""

    __slots__ = ("_chooser", "_left", "_number", "_send", "_source", "_weight")

    def __init__(self, chooser: Chooser, source: SessionSource, number: int, weight: float, send: Send) -> None:
        self._chooser = chooser
        self._source = source
        self._number = number
        self._weight = weight
        self._send = send
        self._left = 3  # messages that may hold it: an accept or start, and the first two with data

    async def __call__(self, message: Message) -> None:
        if self._left:
            self._left -= 1
            data: Any = message.get("body") or message.get("text") or message.get("bytes")
            if data and self._source.from_body is not None:
                session = self._source.from_body(data.encode() if isinstance(data, str) else bytes(data[:4096]))
                if session:
                    self._chooser.learn(self._source, session, self._number, self._weight)
                    self._left = 0
        await self._send(message)


async def _gateway(exchange: Exchange, scope: Scope, send: Send) -> None:
    """The candidate took the request and gave no answer: nobody may repeat it, so the client hears of it."""
    problem = Problem(
        502,
        "The version that took this request did not answer; it may have acted on it. Ask what became of it first.",
        retry_after=RETRY_AFTER,
    )
    await problem.send(send, websocket=scope["type"] == "websocket")
