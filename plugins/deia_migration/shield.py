"""The shield: a GET or HEAD that fails on the new version before anything was sent is answered by the old one.

It holds back nothing but the head of a failing answer; a good one passes untouched and unbuffered. A version that does
not come to the end of its failing answer is given `PATIENCE`, then the old one is asked.
"""

from __future__ import annotations

from collections.abc import Callable

from deia_hardening.plugin import Message, Receive, Scope, Send

PATIENCE = 1.0
"""Seconds for the rest of a failing answer that nobody will see, and for what its version does after it."""


def bodyless(scope: Scope) -> bool:
    """Whether a request announces no body."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return False
    return True


class Shield:
    """One request's second chance.

    `failed`: the candidate's answer began with 500 or more and was held back. `started`: an answer has begun.
    `silent`: the candidate returned without any answer. `scope` is what the second try is called with; `on_failed` is
    called when a failing answer begins.
    """

    __slots__ = ("_read", "_receive", "failed", "on_failed", "pass_on", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The candidate gets the request's own scope, where its routing is looked for; the second try a clean copy.
        self.scope = dict(scope)
        if "state" in scope:
            self.scope["state"] = dict(scope["state"])
        self._receive = receive
        self.pass_on = send
        self.failed = False
        self.on_failed: Callable[[], object] = lambda: None
        self.started = False
        self._read: list[Message] = []

    @property
    def possible(self) -> bool:
        """Whether the request can be asked twice: one with a body can't."""
        return bodyless(self.scope)

    @property
    def silent(self) -> bool:
        return not self.started and not self.failed

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read.append(message)
        return message

    async def receive_again(self) -> Message:
        """What the candidate had read, then what comes next."""
        if self._read:
            return self._read.pop(0)
        return await self._receive()

    async def send(self, message: Message) -> None:
        if self.failed:
            return  # the rest of an answer that nobody will see
        if not self.started and message["type"] == "http.response.start":
            if message["status"] >= 500:
                self.failed = True
                self.on_failed()
                return
            self.started = True
        await self.pass_on(message)
