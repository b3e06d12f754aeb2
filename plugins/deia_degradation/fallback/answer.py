"""One bot's try at answering a request: what it sends is passed on, held back or put aside.

The answer goes to the client as it comes, unbuffered; it is held back only until its status is known (and its body,
where the pool's settings look into it). An answer is put aside only when another bot has been taken already, so no
answer of a bot is ever replaced by a worse one of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING

from deia_degradation.fallback.judge import retry_after
from deia_degradation.pool.bot import Member
from deia_hardening.plugin import Message
from deia_hardening.upstream import Outcome

if TYPE_CHECKING:
    from deia_degradation.fallback.forward import Forward

_PENDING, _PASSED, _SWALLOWED = 0, 1, 2
_LEAST_SUSPICIOUS = 429
"""Statuses below this one are answers, whatever the settings say."""
_SWALLOW_LIMIT = 65536
"""Bytes of an unwanted answer that are let run out, so that its connection can be used again."""


class PutAside(Exception):  # noqa: N818 - no error
    """Ends an answer that nobody wants any more and that does not end by itself."""


class Answer:
    """One bot's try at answering: what it sends is passed on, held back or put aside."""

    __slots__ = (
        "_chunks", "_forward", "_held", "_size", "_state", "_swallowed", "began",
        "cut_off", "error", "exhausted", "failure", "member", "rest", "started",
    )  # fmt: skip

    def __init__(self, forward: Forward, member: Member) -> None:
        self._forward = forward
        self.member = member
        self.started = monotonic()
        self.began = 0.0
        self.failure = ""
        self.exhausted = False
        self.rest = 0.0
        self.cut_off = False
        """Whether the client's side took no more of it."""
        self.error: BaseException | None = None
        self._state = _PENDING
        self._held: Message | None = None
        self._chunks: list[Message] = []
        self._size = 0
        self._swallowed = 0

    def send(self, message: Message) -> Awaitable[None]:
        """The ASGI `send` of this attempt."""
        forward = self._forward
        if self._state == _PASSED:
            return self._pass(message)
        if self._state == _SWALLOWED:
            return self._swallow(message)
        if (
            message["type"] == "http.response.start"
            and message["status"] < _LEAST_SUSPICIOUS
            and forward.winner is None
            and not forward.looks
        ):  # nearly all
            self.began = monotonic()
            self._state = _PASSED
            forward.claimed(self)
            return self._pass(message)
        return self._decide(message)

    async def _pass(self, message: Message) -> None:
        try:
            await self._forward.send(message)
        except Exception as error:
            # The client has left, or its stream's time is over: not the bot's fault. uvloop says so by RuntimeError.
            self.cut_off = isinstance(error, OSError) or message["type"] == "http.response.body"
            raise

    async def _swallow(self, message: Message) -> None:
        self._swallowed += len(message.get("body", b""))
        if self._swallowed > _SWALLOW_LIMIT:
            raise PutAside

    async def _decide(self, message: Message) -> None:
        forward = self._forward
        if forward.winner is not None:
            self._state = _SWALLOWED
            return
        kind = message["type"]
        if kind == "http.response.start":
            self.began = monotonic()
            status: int = message["status"]
            judge = forward.pool.judge
            if judge.exhausted(status):
                self.exhausted = True
                self.rest = retry_after(message.get("headers", ()), 5.0)
            elif judge.fails(status):
                self.failure = f"status {status}"
            elif judge.looks_into(message.get("headers", ())):
                self._held = message
                return
            await self._settle(message)
        elif self._held is not None:
            self._chunks.append(message)
            judge = forward.pool.judge
            whole = not message.get("more_body")  # whatever else comes instead of a body (a path) ends it too
            body = b"".join(chunk.get("body") or b"" for chunk in self._chunks) if whole else b""
            self._size += len(message.get("body") or b"")
            if whole and self._size <= judge.body_limit and judge.body_fails(body):
                self.failure = "its body says so"
            if whole or self._size > judge.body_limit:  # longer than it said, or than is worth a look
                await self._settle(self._held)
        else:
            await forward.send(message)  # an early hint: it commits nobody

    async def _settle(self, start: Message) -> None:
        """The answer is known for what it is: pass it on, or put it aside for another bot's."""
        forward = self._forward
        if self.failure or self.exhausted:
            other_runs = forward.hedge_over is not None and not forward.hedge_over.is_set()
            if self is forward.hedge and forward.primary is not None:
                self._state = _SWALLOWED
                return
            if self is not forward.hedge and other_runs:
                self._state = _SWALLOWED
                return
            if forward.take_next(Outcome.FAILED_BEFORE_START, self.exhausted):
                self._state = _SWALLOWED
                return
        self._state = _PASSED
        forward.claimed(self)
        if forward.pool.settings.served_by:
            headers = [*start.get("headers", ()), (b"x-served-by", self.member.bot.id.encode("utf-8"))]
            start = {**start, "headers": headers}
        await self._pass(start)
        for chunk in self._chunks:
            await self._pass(chunk)
        self._chunks = []
