"""One incoming request on its way to a bot, and to another one when that does not work.

The bot is asked in the request's own task. Only when it takes long is a second one asked beside it; time limits and
that moment are watched by one watcher for all requests, so a request sets no timer.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import anyio

from deia_degradation.fallback.answer import Answer, PutAside
from deia_degradation.fallback.body import Body
from deia_degradation.fallback.cut import Cut, cut
from deia_degradation.fallback.retry import may_ask_another, repeatable
from deia_degradation.fallback.watch import Watched, Watcher, spawn
from deia_degradation.gatekeeping import refuse
from deia_degradation.pool.bot import Member, Verdict
from deia_degradation.pool.pool import Pool
from deia_hardening.plugin import Latch, Message, Mode, Problem, Receive, RequestContext, Scope, Send
from deia_hardening.upstream import Outcome, UpstreamError, outcome_of

_NEVER = float("inf")
_DONE: Any = object()
_FULL = Mode.FULL
_TIMEOUT_HEADER = b"x-request-timeout"


class Forward:
    """One request. `run` returns when the client has its answer."""

    # What most requests never need costs them nothing: it is set when it happens.
    winner: Answer | None = None
    next: Member | None = None
    """The bot that was taken for the next attempt before the last answer was put aside."""
    primary: Cut | None = None
    hedge: Answer | None = None
    hedge_scope: anyio.CancelScope | None = None
    hedge_over: Latch | None = None
    hedge_unwanted = False
    primary_over: Latch | None = None
    """Set once the first attempt no longer reads from the client; then the hedge does."""
    timed_out = False
    _watched: Watched | None = None
    _hedge_due = False
    _limit = _NEVER

    def __init__(
        self, pool: Pool, watcher: Watcher, scope: Scope, receive: Receive, send: Send, context: RequestContext,
        path: str, key: str | None, named: str, drop: frozenset[bytes] = frozenset(),
    ) -> None:  # fmt: skip
        self.pool = pool
        self.watcher = watcher
        self.scope = scope
        self.send = send
        self.context = context
        self.path = path
        self.key = key
        self.named = named
        self.drop = drop
        settings = pool.settings
        self.method: str = scope["method"]
        self.looks = bool(pool.judge.body) or settings.served_by
        """Whether an answer is looked into, or told who gave it, before it is passed on."""
        effects = context.revision.effects
        self.effects = not effects.empty and bool(effects.match(scope))
        self.repeatable = repeatable(self.method, scope["headers"], self.effects)
        self.body = Body(receive, int(settings.retry.body))
        self.tried: list[Member] = []
        self.unsent = True
        """Whether nothing of the request has reached any bot."""

    # -- the loop ------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Answer the request; False when no bot could be asked, so that the caller may still do something else."""
        pool = self.pool
        pool.retry.deposit()
        pool.calls += 1
        member = pool.take(self.named, monotonic()) if self.named else None
        if member is None:
            member = pool.choose(monotonic(), key=self.key, probe=self.repeatable and pool.retry.rich)
        if member is None:
            return False
        try:
            while member is not None:
                self.tried.append(member)
                pool.attempts_made += 1
                error = await self._attempt(member)
                if self.winner is not None:
                    return True
                member = self.next
                self.next = None
            if self.context.disconnected:
                return True
            if self.unsent:
                return False
            await self._give_up(error)
            return True
        finally:
            self._release_next()
            if self.winner is not None:
                self.winner = _DONE  # no cycle is left behind, so the request's revision can be let go

    async def _attempt(self, member: Member) -> BaseException | None:
        """One attempt; its bot is judged. What it raised comes back, unless it must be passed on."""
        attempt = Answer(self, member)
        watched = self._watch(member)
        error: BaseException | None = None
        if self.timed_out:
            self.timed_out = False
        try:
            call = member.target(self._child_scope(), self.body.reader(), attempt.send)
            if watched is None:
                await call
            else:
                self.primary = cut()
                await self.primary.run(call)
        except PutAside:
            pass
        except Exception as raised:
            error = raised
        except BaseException:
            self._abandon(attempt)
            raise
        finally:
            self.primary = None
            if self.primary_over is not None:
                self.primary_over.set()
            if watched is not None:
                watched.drop()
                self._watched = None
        beaten = self.winner is not None and self.winner is not attempt
        outcome = self._judge(attempt, error, beaten)
        if self.hedge_over is not None and not self.hedge_over.is_set() and self.winner is not attempt:
            if self.winner is None and self.context.disconnected:
                self._drop_hedge()
            else:
                await self._await_hedge()
        if self.winner is not None:
            if self.winner is attempt and error is not None:
                raise error  # the answer broke after its start: the client must notice
            return None
        if outcome is not Outcome.NOT_SENT:
            self.unsent = False
        if self.next is None:
            self.take_next(outcome, attempt.exhausted)
        if error is not None and not isinstance(error, UpstreamError) and self.next is None:
            raise error  # an app in this process raised: it is passed on untouched
        return error if error is not None else _TimedOut() if self.timed_out else None

    def _child_scope(self) -> Scope:
        scope = dict(self.scope)
        if self.path:
            scope["path"] = self.path
            scope["raw_path"] = self.path.encode("utf-8")
            scope["root_path"] = ""
        headers, drop = scope["headers"], self.drop
        if drop:
            for name, _ in headers:
                if name in drop:
                    scope["headers"] = headers = [pair for pair in headers if pair[0] not in drop]
                    break
        deadline = self.context.deadline
        if deadline is not None:
            left = max(0.0, deadline - monotonic())
            headers = [pair for pair in headers if pair[0] != _TIMEOUT_HEADER]
            headers.append((_TIMEOUT_HEADER, f"{left * 1000:.0f}ms".encode()))
            scope["headers"] = headers
        return scope

    def _judge(self, attempt: Answer, error: BaseException | None, beaten: bool) -> Outcome:
        now = monotonic()
        seconds = (attempt.began or now) - attempt.started
        slower = self.pool.judge.slower
        if error is None and attempt.began and not (beaten or attempt.failure or attempt.exhausted or slower):
            self.pool.done(attempt.member, now, seconds, Verdict.GOOD)
            return Outcome.COMPLETED
        outcome = outcome_of(error, started=attempt.began > 0.0)
        if self.timed_out and not attempt.began:
            outcome = Outcome.FAILED_BEFORE_START
        pool = self.pool
        verdict, reason = Verdict.GOOD, ""
        if beaten and not attempt.began:
            verdict, reason = Verdict.FAILED, "slower than another bot that was asked later"
        elif attempt.exhausted:
            verdict = Verdict.NEUTRAL
            pool.exhausted(attempt.member, attempt.rest)
        elif attempt.cut_off:
            verdict = Verdict.NEUTRAL
        elif isinstance(error, UpstreamError):
            verdict, reason = Verdict.FAILED, error.cause
        elif error is not None:
            if pool.judge.exceptions:
                verdict, reason = Verdict.FAILED, type(error).__name__
            else:
                verdict = Verdict.NEUTRAL
        elif self.timed_out:
            verdict, reason = Verdict.FAILED, "no answer in time"
        elif not attempt.began:
            if self.context.disconnected:
                verdict = Verdict.NEUTRAL
            else:
                verdict, reason = Verdict.FAILED, "no answer"
        elif attempt.failure:
            verdict, reason = Verdict.FAILED, attempt.failure
        elif slower and seconds > slower:
            verdict, reason = Verdict.FAILED, f"its answer began after {seconds:.3g} s"
        pool.done(attempt.member, now, seconds, verdict, reason)
        return outcome

    def _abandon(self, attempt: Answer) -> None:
        """The caller was cancelled: give the bot back unjudged, take the hedge along."""
        self.pool.done(attempt.member, monotonic(), 0.0, Verdict.NEUTRAL)
        self._drop_hedge()
        self._release_next()

    def _drop_hedge(self) -> None:
        self.hedge_unwanted = True
        if self.hedge_scope is not None:
            self.hedge_scope.cancel()

    def _release_next(self) -> None:
        if self.next is not None:
            self.pool.done(self.next, monotonic(), 0.0, Verdict.NEUTRAL)
            self.next = None

    def take_next(self, outcome: Outcome, refused: bool) -> bool:
        """Take a bot for one more attempt, if the rules and the budget allow one."""
        if self.context.disconnected or not may_ask_another(
            outcome,
            repeatable=self.repeatable,
            refused=refused,
            effects=self.effects,
            replayable=self.body.replayable,
            tried=len(self.tried),
            attempts=self.pool.retry.policy.attempts,
            remaining=self.context.remaining(),
        ):
            return False
        now = monotonic()
        member = self.pool.choose(now, exclude=self.tried)
        if member is None:
            return False
        if not refused and not self.pool.retry.withdraw(now):
            self.pool.done(member, now, 0.0, Verdict.NEUTRAL)
            return False
        self.next = member
        return True

    async def _give_up(self, error: BaseException | None) -> None:
        if isinstance(error, UpstreamError) and error.outcome is Outcome.NOT_SENT:
            problem = Problem(
                503, "The bot that should answer can't be reached; nothing was sent to it.",
                retry_after=max(1.0, self.pool.retry_after(monotonic())),
            )  # fmt: skip
        elif isinstance(error, _TimedOut) or "timeout" in getattr(error, "cause", ""):
            problem = Problem(504, "The bot that was asked did not answer in time; it may have acted.")
        else:
            problem = Problem(502, "The bot that was asked failed before it answered; it may have acted.")
        await refuse(problem, self.scope, self.send)

    # -- hedging and time limits ---------------------------------------------------------------------------

    def _watch(self, member: Member) -> Watched | None:
        """Have the watcher act when a hedge is due or a time limit passes; None where there is neither."""
        settings = self.pool.settings
        hedged = (
            self.method == "GET"
            and self.repeatable
            and settings.retry.hedge
            and self.hedge_over is None
            and self.context.mode is _FULL
            and len(self.pool) > 1
        )
        limit = self.context.deadline or _NEVER
        if not (hedged or settings.first_within) and limit == _NEVER:
            return None
        now = monotonic()
        if settings.first_within:
            limit = min(limit, now + settings.first_within)
        at = limit
        self._hedge_due = False
        if hedged:
            hedge_at = now + max(member.load.expected * settings.retry.hedge_factor, settings.retry.hedge_min)
            if hedge_at < limit:
                at = hedge_at
                self._hedge_due = True
        if at == _NEVER:
            return None
        self._limit = limit
        watched = self._watched = Watched(at, self._act)
        self.watcher.add(watched)
        return watched

    def _act(self) -> None:
        """The watched moment came; on the serving loop, outside of the request's task."""
        if self.winner is not None or self.primary is None:
            return
        if self._hedge_due:
            self._hedge_due = False
            self._start_hedge()
            if self._limit != _NEVER and self._watched is not None:
                self._watched.at = self._limit
                self.watcher.add(self._watched)
            return
        self.timed_out = True
        self.primary.cancel()

    def _start_hedge(self) -> None:
        """Ask one more bot for the same GET, while the first has not answered. On the serving loop."""
        if not self.body.complete and any(
            name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in self.scope["headers"]
        ):
            return  # a GET with a body that is still being read
        if self.next is not None or len(self.tried) > max(1, self.pool.retry.policy.attempts):
            return  # another is asked next, or it has been asked of as many as a request may be
        now = monotonic()
        member = self.pool.choose(now, exclude=self.tried)
        if member is None:
            return
        if not self.pool.retry.withdraw(now):
            self.pool.done(member, now, 0.0, Verdict.NEUTRAL)
            return
        self.tried.append(member)
        self.pool.attempts_made += 1
        self.unsent = False
        self.hedge = Answer(self, member)
        self.hedge_over = Latch()
        self.primary_over = Latch()
        spawn(self._run_hedge)

    async def _run_hedge(self) -> None:
        attempt, over = self.hedge, self.hedge_over
        assert attempt is not None
        assert over is not None
        error: BaseException | None = None
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": b"", "more_body": False}
            assert self.primary_over is not None
            await self.primary_over.wait()  # two readers at once would take each other's messages
            return await self.body.rest()

        try:
            with anyio.CancelScope() as scope:
                self.hedge_scope = scope
                if self.winner is None and not self.hedge_unwanted:  # else it is late already
                    await attempt.member.target(self._child_scope(), receive, attempt.send)
        except PutAside:
            pass
        except Exception as raised:
            error = raised
        finally:
            self.hedge_scope = None
            if self.winner is attempt or error is not None or attempt.failure or attempt.exhausted:
                self._judge(attempt, error, False)
            else:  # it was not given its time
                self.pool.done(attempt.member, monotonic(), 0.0, Verdict.NEUTRAL)
            if self.winner is attempt:
                attempt.error = error
            self.hedge = None
            over.set()

    async def _await_hedge(self) -> None:
        """The first attempt is over without an answer: what the hedge says counts."""
        assert self.hedge_over is not None
        try:
            await self.hedge_over.wait()
        except BaseException:
            self._drop_hedge()
            raise
        if self.winner is not None and self.winner.error is not None:
            raise self.winner.error

    def claimed(self, attempt: Answer) -> None:
        """`attempt` is the one whose answer goes out: the other one is cancelled."""
        self.winner = attempt
        self.context.bot = attempt.member.bot.id
        if attempt is self.hedge:
            if self.primary is not None:
                self.primary.cancel()
        elif self.hedge_scope is not None:
            self.hedge_scope.cancel()


class _TimedOut(Exception):  # noqa: N818 - an internal verdict
    """No first byte within the limit."""
