"""Learning sessions from answers, before their clients see them."""

from __future__ import annotations

from typing import Any

from deia_hardening.plugin import Exchange, Message, Send
from deia_migration.choose import Chooser
from deia_migration.sources import SessionSource

_OTHERS = 64
"""Names that are kept at most: an app may make them up."""


class HeaderLearner:
    """Looks at the headers of a version's answers; one object serves all requests of a version at one weight."""

    __slots__ = ("_chooser", "_names", "_number", "_others", "_weight")

    def __init__(self, chooser: Chooser, number: int, weight: float) -> None:
        self._chooser = chooser
        self._names = chooser.header_names
        self._others: set[bytes] = set()
        """Names of headers, as apps write them, that hold no session."""
        self._number = number
        self._weight = weight

    def __call__(self, exchange: Exchange) -> None:
        message = exchange.start
        if message is None:
            return
        names, others = self._names, self._others
        for name, _ in message.get("headers", ()):
            if name in others:
                continue
            if name.lower() in names:
                self._learn(message["headers"])
                return
            if len(others) < _OTHERS:
                others.add(name)

    def _learn(self, headers: Any) -> None:
        for source in self._chooser.learners:
            session = source.from_headers(headers) if source.from_headers is not None else None
            if session:
                self._chooser.learn(source, session, self._number, self._weight)


class BodyLearner:
    """Looks for a session id in an answer's first bytes; then only passes on."""

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
