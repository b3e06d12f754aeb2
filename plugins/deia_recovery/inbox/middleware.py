"""The inbox's layer: verify a webhook, store it, acknowledge it; and the status of accepted tasks.

A delivery is acknowledged only when it is on disk; where that fails the sender gets 507 and delivers again. What it
does not handle passes with one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from deia_hardening.context import SCOPE_KEY
from deia_hardening.plugin import route_path
from deia_hardening.problem import Problem
from deia_recovery.errors import StateUnavailable, Undecodable, UnknownTask
from deia_recovery.inbox.replay import STATUS, stored
from deia_recovery.inbox.senders import Sender, named
from deia_recovery.sse import stream

if TYPE_CHECKING:
    from deia_hardening.plugin import ASGIApp, Message, Receive, Scope, Send
    from deia_recovery.inbox.replay import Replayer


class InboxMiddleware:
    """Stores deliveries to the configured routes; serves `/deia/tasks/<id>` and `/deia/tasks/<id>/events`."""

    def __init__(self, app: ASGIApp, senders: dict[str, Sender], replayer: Callable[[], Replayer | None]) -> None:
        self.app = app
        self._senders = senders
        self._replayer = replayer

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of our own around a request that is the app's.
        if scope["type"] == "http":
            path = route_path(scope)
            sender = self._senders.get(path)
            if sender is not None:
                if scope["method"] == "POST":
                    replayer = self._replayer()
                    if replayer is None:  # never to the app: it relies on deliveries being verified
                        return Problem(503, "The inbox is not up. Deliver it again.", retry_after=5).send(send)
                    return self._deliver(sender, replayer, scope, receive, send)
            elif path.startswith(STATUS) and scope["method"] == "GET" and (replayer := self._replayer()) is not None:
                return self._status(replayer, path[len(STATUS) :], scope, receive, send)
        return self.app(scope, receive, send)

    async def _deliver(self, sender: Sender, replayer: Replayer, scope: Scope, receive: Receive, send: Send) -> None:
        route = sender.route
        body = await _read(receive, int(route.limit))
        if body is None:
            await Problem(413, f"A delivery to {route.path} has at most {int(route.limit)} bytes.").send(send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        clock = replayer.clock
        why = sender.refusal(headers, body, clock.wall())
        if why:
            await Problem(401, f"The sender is not proven: {why}. Nothing was stored.").send(send)
            return
        replayer.seen(scope)
        if sender.passes(headers, body):
            await self.app(scope, _again(body, receive), send)
            return
        conversation = sender.conversation(body)
        try:
            await replayer.inbox.submit(
                stored(scope, body),
                key=named(route.path, sender.key(headers, body)),
                conversation=None if conversation is None else named(route.path, conversation),
                max_attempts=route.attempts,
                actor="inbox",
            )
        except StateUnavailable as error:
            await Problem(507, f"{error} Deliver it again.", retry_after=5).send(send)
            return
        await send({"type": "http.response.start", "status": route.ack, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        replayer.wake()

    async def _status(self, replayer: Replayer, rest: str, scope: Scope, receive: Receive, send: Send) -> None:
        task, _, tail = rest.partition("/")
        actor = scope[SCOPE_KEY].actor if SCOPE_KEY in scope else None
        try:
            found = await replayer.accepted.get(task)
        except (UnknownTask, Undecodable):
            found = None
        if found is None or actor is None or not actor.id or found.actor != actor.id or tail not in ("", "events"):
            await Problem(404, "There is no such task, or it is somebody else's.").send(send)
            return
        if tail:
            await stream(replayer.accepted, task, scope, receive, send)
            return
        answer = {"task": found.id, "state": found.state, "attempts": found.attempts, "result": found.result}
        await _json(send, answer)


async def _read(receive: Receive, limit: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    left = [body]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


async def _json(send: Send, answer: dict[str, Any]) -> None:
    body = msgspec.json.encode(answer)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
