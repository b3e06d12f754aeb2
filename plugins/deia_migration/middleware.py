"""The layer at ROUTE: each request to the version it belongs to.

With no rollout a request falls through to the app. During one it is sent to the candidate or to the stable version,
kept in a table of flights while it runs, and told to the judge when it has ended. A candidate that can't be reached
costs nobody an answer: the stable version takes the request at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import ASGIApp, Exchange, Receive, RequestContext, Scope, Send, route_path
from deia_hardening.upstream import FailedBeforeStart, NotSent
from deia_migration.choose import Chooser
from deia_migration.flights import Caller, current_task, cut, gateway
from deia_migration.learn import BodyLearner, HeaderLearner
from deia_migration.mirror import Mirror
from deia_migration.outcome import BodyCheck, BodyRules, Outcome, failed, told
from deia_migration.shield import Shield
from deia_migration.traffic import Live, Router, Version

_monotonic = time.monotonic
_current_task = asyncio.current_task

Tell = Callable[[Outcome], None]


class Rules:
    """What one revision says about routing; made once per revision."""

    __slots__ = ("body", "chooser", "keep", "mirror", "room", "shield", "special", "statuses", "wait")

    def __init__(
        self,
        chooser: Chooser,
        body: BodyRules,
        statuses: frozenset[int],
        shield: bool,
        mirror: Mirror | None = None,
        wait: float = 0.0,
        room: int = 0,
        keep: int = 0,
    ) -> None:
        self.chooser = chooser
        self.body = body if body.wanted else None
        self.statuses = statuses
        self.shield = shield
        self.mirror = mirror
        self.wait = wait
        self.room = room
        self.keep = keep
        self.special = self.body is not None or mirror is not None


class SplitLayer:
    """One revision's layer around `app`, which is the stable version unless another was promoted.

    The common way (stable answers, nothing to look into) is one coroutine, nothing between; `benchmarks/migration.py
    cost` measured 0.8 µs without a rollout, 2.9 without a key and 3.5 with one, 1.3 of them for the split itself.
    """

    __slots__ = (
        "_ahead", "_app", "_body_prefixes", "_caller", "_choose", "_client_made", "_learning", "_router", "_rules",
        "_tell",
    )  # fmt: skip

    def __init__(self, app: ASGIApp, router: Router, rules: Rules, tell: Tell) -> None:
        self._app = app
        self._router = router
        self._rules = rules
        self._tell = tell
        self._caller = Caller(app, router, rules.wait, rules.room, rules.keep)
        self._ahead = rules.chooser.ahead
        self._choose = rules.chooser.choose
        self._client_made = bool(rules.chooser.client_made)
        self._learning: tuple[Live | None, HeaderLearner | None, HeaderLearner | None] = (None, None, None)
        self._body_prefixes = tuple(source.prefix for source in rules.chooser.looks_at_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        router = self._router
        state = router.state()
        if state is not router.seen:
            router.refresh(state)
        context: RequestContext = scope[SCOPE_KEY]
        body: bytes | None = None
        if self._ahead is not None and self._ahead.wants(scope):
            body, receive = await self._ahead.read(receive)
        live = router.live
        if live is None:
            version = router.base
            weight = -1.0
            new = False
            if version.answer is not None:
                context.version = version.name
            if self._client_made:
                self._rules.chooser.bind_running(version.number, scope, context, body)
        else:
            if body is None:
                new, weight, source = self._choose(live, scope, context)
            else:
                new, weight, source = self._rules.chooser.choose_read(live, scope, context, body)
            version = live.candidate if new else live.stable
            context.version = version.label
            learning = self._learning
            if (
                learning[0] is not live
                or weight != live.weight
                or (self._body_prefixes and route_path(scope).startswith(self._body_prefixes))
            ):
                send = self._learn(live, new, weight, source is not None, scope, context, send)
            else:
                learner = learning[2] if new else learning[1]
                if learner is not None:
                    context.on_start(learner)
            if source is not None and source.ends and scope.get("method") == "DELETE":
                self._forget_at_end(source, scope, context)
            if new or self._rules.special:
                await self._special(live, version, new, weight, scope, receive, send)
                return
        try:
            task = _current_task()
        except RuntimeError:
            task = None
        if task is None:  # outside of the handler: it would show up as the context of the app's own exceptions
            await self._special(live, version, new, weight, scope, receive, send)
            return
        flights = version.flights
        flights[task] = (context, weight)
        arrived = _monotonic() if weight >= 0.0 else 0.0
        try:
            answer = version.answer
            if answer is None:
                await self._app(scope, receive, send)
            else:
                receive = self._caller.kept(receive)
                await answer(scope, receive, send)
        except BaseException as error:
            if not await self._after_error(version, task, error, new, weight, scope, receive, send):
                raise
        else:
            if weight >= 0.0:
                if (
                    context.complete
                    and context.status < 400
                    and context.status != 101
                    and not version.counted
                    and context.revision.long.empty
                ):
                    actor = context.actor
                    waited = (context.first_byte or context.started) - arrived
                    if actor.auth:
                        self._tell((new, weight, actor.id, False, False, waited))
                    else:
                        client = scope.get("client")
                        self._tell((new, weight, client[0] if client else "", True, False, waited))
                else:
                    self._end(version, task, None, new, weight, scope, context, arrived, False)
        finally:
            flights.pop(task, None)

    # -- the less common ways -------------------------------------------------------------------------------

    async def _special(
        self, live: Live | None, version: Version, new: bool, weight: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """A request to the candidate, or one that is looked into on its way; or one that trio serves."""
        rules = self._rules
        context: RequestContext = scope[SCOPE_KEY]
        if rules.mirror is not None and live is not None and not new and weight >= 0:
            receive, send = rules.mirror.take(live, version.answer or self._app, scope, receive, send)
        check: BodyCheck | None = None
        if rules.body is not None and 0 < weight < 1 and scope["type"] == "http":
            check = BodyCheck(rules.body, scope, send)
            send = check
        arrived = _monotonic()
        error: BaseException | None = None
        counted = False
        try:
            if new and live is not None:
                counted = await self._new(live, weight, scope, receive, send)
            else:
                await self._caller.surely(version, weight, scope, receive, send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if weight >= 0 and not counted:
                bad = check is not None and check.bad
                self._end(version, current_task(), error, new, weight, scope, context, arrived, bad)

    async def _new(self, live: Live, weight: float, scope: Scope, receive: Receive, send: Send) -> bool:
        """Call the candidate; the stable version answers what it could not take. True: its failure is counted."""
        context: RequestContext = scope[SCOPE_KEY]
        method = scope.get("method")
        candidate, stable = live.candidate, live.stable
        if (
            self._rules.shield
            and (method == "GET" or method == "HEAD")
            and not context.revision.effects.match(scope, False)
        ):
            shield = Shield(scope, receive, send)
            if shield.possible:
                return await self._shielded(live, weight, scope, shield)
        kept = self._caller.kept(receive)
        try:
            await self._caller.fly(candidate, weight, scope, kept, send)
        except NotSent:
            self._count(context, weight)
            if not kept.rewind():
                await gateway(scope, send)
                return True
            context.version = stable.label
            await self._caller.surely(stable, -1.0, scope, kept, send)
            return True
        except FailedBeforeStart:
            self._count(context, weight)
            await gateway(scope, send)
            return True
        return False

    async def _shielded(self, live: Live, weight: float, scope: Scope, shield: Shield) -> bool:
        """Let the candidate try; what fails with nothing sent yet is answered by the stable version."""
        context: RequestContext = scope[SCOPE_KEY]
        held, task = live.candidate.held, current_task()
        shield.on_failed = lambda: held.setdefault(task, _monotonic())
        try:
            await self._caller.fly(live.candidate, weight, scope, shield.receive, shield.send)
        except Exception:
            if shield.started:
                raise
            shield.failed = True
        finally:
            held.pop(task, None)
        if not shield.failed and not shield.silent:
            return False
        if context.disconnected or context.complete:
            return False
        self._count(context, weight)  # first it counts, then it is mended
        context.version = live.stable.label
        context.scope = shield.scope
        await self._caller.surely(live.stable, -1.0, shield.scope, shield.receive_again, shield.pass_on)
        return True

    # -- what becomes of it ---------------------------------------------------------------------------------

    async def _after_error(
        self,
        version: Version,
        task: Any,
        error: BaseException,
        new: bool,
        weight: float,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> bool:
        """True when the error was our own cut, or the version's alone, and the client has been told."""
        context: RequestContext = scope[SCOPE_KEY]
        if isinstance(error, asyncio.CancelledError) and task in version.cutting:
            await cut(task, scope, send)
            version.cutting.discard(task)
            return True
        beside = version.answer is not None
        if beside and isinstance(error, (NotSent, FailedBeforeStart)) and not context.status:
            if weight >= 0:
                self._tell(told(context, new, weight, True, -1.0))
            await self._caller.instead(error, scope, self._caller.kept(receive), send)
            return True
        if weight >= 0:
            self._end(version, task, error, new, weight, scope, context, 0.0, False)
        return False

    def _end(
        self,
        version: Version,
        task: Any,
        error: BaseException | None,
        new: bool,
        weight: float,
        scope: Scope,
        context: RequestContext,
        arrived: float,
        bad_body: bool,
    ) -> None:
        """Tell the judge of a request that has ended, unless it says nothing or was told before."""
        if version.counted and task in version.counted:
            version.counted.discard(task)
            return
        if version.cutting and task in version.cutting:
            return
        bad = failed(context, error, self._rules.statuses)
        if bad is None:
            return
        bad = bad or bad_body
        waited = -1.0
        if not bad and context.status != 101 and not context.revision.long.match(scope, False):
            waited = (context.first_byte or context.started) - arrived
        self._tell(told(context, new, weight, bad, waited))

    def _count(self, context: RequestContext, weight: float) -> None:
        """Tell the judge of a failure of the candidate that its client will not see."""
        if weight >= 0:
            self._tell(told(context, True, weight, True, -1.0))

    # -- sessions -------------------------------------------------------------------------------------------

    def _learn(
        self, live: Live, new: bool, weight: float, known: bool, scope: Scope, context: RequestContext, send: Send
    ) -> Send:
        """Have the answer looked at for a session that it issues; `known`: in the place of the request's own."""
        chooser = self._rules.chooser
        number = (live.candidate if new else live.stable).number
        if chooser.learners:
            if weight != live.weight:  # an override, or a session begun at another weight: what follows inherits it
                context.on_start(HeaderLearner(chooser, number, weight))
            else:
                if self._learning[0] is not live:
                    old_learner = HeaderLearner(chooser, live.stable.number, weight)
                    self._learning = (live, old_learner, HeaderLearner(chooser, live.candidate.number, weight))
                learner = self._learning[2] if new else self._learning[1]
                assert learner is not None
                context.on_start(learner)
        elif self._learning[0] is not live:
            self._learning = (live, None, None)
        if known:
            return send
        path = route_path(scope)
        for source in chooser.looks_at_bodies:
            if not source.prefix or path.startswith(source.prefix):
                return BodyLearner(chooser, source, number, weight, send)
        return send

    def _forget_at_end(self, source: Any, scope: Scope, context: RequestContext) -> None:
        chooser = self._rules.chooser

        def ended(exchange: Exchange) -> None:
            if 200 <= exchange.status < 300:
                chooser.end(source, scope, context)

        context.on_end(ended)
