"""A request's body that can be read more than once, up to a bound.

What the first reader takes from the client is kept for the next one. Beyond the bound nothing is kept, and the
request can no longer be given to another bot.
"""

from __future__ import annotations

from deia_hardening.plugin import Message, Receive


class Body:
    """The messages of one request. `reader()` gives each attempt a `receive` of its own."""

    __slots__ = ("_kept", "_limit", "_receive", "_size", "complete", "replayable")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._kept: list[Message] = []
        self._size = 0
        self.replayable = True
        self.complete = False
        """Whether the last message of the body was read."""

    def reader(self) -> Receive:
        """A `receive` that gives the body from its start. Only the newest reader may be used."""
        if not self._kept:
            return self._read
        position = 0

        async def again() -> Message:
            nonlocal position
            if position < len(self._kept):
                message = self._kept[position]
                position += 1
                return message
            position += 1
            return await self._read()

        return again

    async def rest(self) -> Message:
        """What comes after the body: the client leaves."""
        while True:
            message = await self._read()
            if message["type"] != "http.request":
                return message

    async def _read(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not self.complete:
            self.complete = not message.get("more_body", False)
            if self.replayable:
                self._size += len(message.get("body", b""))
                if self._size > self._limit:
                    self.replayable = False
                    self._kept = []
                else:
                    self._kept.append(message)
        elif message["type"] == "http.disconnect":
            self.replayable = False  # nobody is left to answer
        return message
