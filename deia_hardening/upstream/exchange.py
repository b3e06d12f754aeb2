"""One HTTP request over one asyncio connection: write it, pass the answer on, judge what went wrong.

The common case (no body or one piece of it) needs no task: the caller's own task writes, waits and sends. A
body in several pieces and a client that is being watched have one task each. RFC 9110 sections 9.2.2 and
10.1.1, RFC 9112 section 9.3.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context

from deia_hardening.streams import until_left
from deia_hardening.types import Message, Receive, Scope, Send
from deia_hardening.upstream.connection import Connection, quiet
from deia_hardening.upstream.pool import Pool
from deia_hardening.upstream.request import CHUNKED, UNKNOWN, BadRequest, Head
from deia_hardening.upstream.response import Malformed
from deia_hardening.upstream.verdict import ClientLeft, Evidence, Next, judge, not_connected

_JOIN_BELOW = 64 * 1024  # a head and a body smaller than this leave in one write


class Exchange:
    """One call. Used once."""

    __slots__ = (
        "_consumed",
        "_first",
        "_head",
        "_held",
        "_name",
        "_pool",
        "_receive",
        "_repeatable",
        "_scope",
        "_send",
    )

    def __init__(
        self,
        name: str,
        pool: Pool,
        head: Head,
        scope: Scope,
        receive: Receive,
        send: Send,
        repeatable: Callable[[Scope], bool],
    ) -> None:
        self._name = name
        self._pool = pool
        self._head = head
        self._scope = scope
        self._receive = receive
        self._send = send
        self._repeatable = repeatable
        self._consumed = False
        self._first: Message | None = None
        self._held: Connection | None = None

    async def run(self) -> None:
        """Raises NotSent, FailedBeforeStart, Aborted, BadRequest (nothing sent), or what `send` raised."""
        pool, head = self._pool, self._head
        connection = pool.take()
        reused = connection is not None
        while True:
            if connection is None:
                connection = await self._connect()
            self._held = connection
            try:
                if head.length == 0:
                    self._begin(connection)
                    connection.write_first(head.data + b"\r\n")
                elif not await self._write(connection):
                    return  # the client left before anything was written
                if connection.uploaded:  # from here the time limits count, and after a while its client is watched
                    now = pool.loop.time()
                    connection.receive = self._receive
                    connection.watch_at = now + pool.watch_after
                    if pool.first_byte_timeout:
                        connection.deadline = now + pool.first_byte_timeout
                if not connection.events and connection.error is None:  # what nearly every call comes to: one wait
                    waiter = connection.waiter = pool.loop.create_future()
                    await waiter
                step = None
                if not connection.done or not connection.uploaded or connection.error is not None:
                    step = await self._answer(connection, reused)
                if step is None:  # all that is left is here: the connection need not wait for the client to take it
                    events, connection.events = connection.events, []
                    self._finish()
                    send = self._send
                    for message in events:
                        await send(message)
                    return
                if step is Next.RETURN:
                    return
            except BaseException:
                if self._held is not None and not self._held.done:
                    self._held.abort()
                raise
            finally:
                self._finish()
            connection = None  # went stale in the pool: once more, on a fresh one
            reused = False

    async def _connect(self) -> Connection:
        try:
            return await self._pool.connect()
        except Exception as error:
            raise not_connected(self._name, error, self._pool.settings, consumed=self._consumed) from None

    def _finish(self) -> None:
        """Give the connection back, once; the pool closes it when it can't be used again."""
        connection = self._held
        if connection is None:
            return
        self._held = None
        task = connection.task
        if task is not None:
            connection.task = None
            if not task.done():
                task.cancel()
        connection.receive = None
        connection.deadline = 0.0
        connection.watched = False
        if connection.error is not None or not connection.uploaded or not connection.done:
            connection.error = None
            connection.reusable = False
        if connection.events:  # the call was cancelled over an answer that nobody took: it must never meet the next one
            connection.events = []
            connection.reusable = False
        self._pool.put(connection)

    def _begin(self, connection: Connection) -> None:
        scope = self._scope
        extensions = scope.get("extensions")
        if extensions:
            connection.begin(
                scope["method"] == "HEAD",
                "http.response.trailers" in extensions,
                "http.response.early_hint" in extensions,
            )
        else:
            connection.begin(scope["method"] == "HEAD")
        connection.context = copy_context()

    async def _write(self, connection: Connection) -> bool:
        """Write a request with a body, or begin to. False when the client has left and nothing was written."""
        head = self._head
        self._begin(connection)
        if head.expect and head.length != UNKNOWN:
            connection.uploaded = False
            connection.write_first(head.framed(head.length, expect=True))
            self._start_upload(connection, head.length, head.length == CHUNKED, expect=True)
            return True
        if not await self._write_with_body(connection):
            connection.done = True
            connection.reusable = True
            return False
        return True

    async def _write_with_body(self, connection: Connection) -> bool:
        message = self._first
        if message is None:
            self._consumed = True
            try:
                message = await self._receive()
            except BaseException:
                connection.done = connection.reusable = True
                raise
            if message["type"] == "http.disconnect":
                return False
            self._first = message
        head = self._head
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        length = head.length
        if not more and length in (UNKNOWN, CHUNKED):
            length = len(body)
        elif length == UNKNOWN:
            length = CHUNKED
        elif length != CHUNKED and (len(body) > length or (not more and len(body) < length)):
            connection.done = connection.reusable = True
            raise BadRequest("a body that is not as long as its Content-Length")
        data = head.framed(length)
        if more and length == CHUNKED:
            body = chunk(body)
        if len(body) < _JOIN_BELOW:
            connection.write_first(data + body)
        else:
            connection.write_first(data)
            if not connection.refused:
                connection.write(body)
        if more and not connection.refused:
            connection.uploaded = False
            self._start_upload(connection, CHUNKED if length == CHUNKED else length - len(body), length == CHUNKED)
        return True

    def _start_upload(self, connection: Connection, left: int, chunked: bool, *, expect: bool = False) -> None:
        connection.watched = True
        work = self._upload(connection, left, chunked, expect)
        task = connection.task = connection.pool.loop.create_task(work)
        task.add_done_callback(quiet)

    async def _upload(self, connection: Connection, left: int, chunked: bool, expect: bool) -> None:
        """The rest of the body, with backpressure; then watch for the client to leave."""
        receive = self._receive
        loop = connection.pool.loop
        limit = connection.pool.settings.first_byte_timeout
        try:
            if expect:
                try:
                    async with asyncio.timeout(connection.pool.settings.expect_timeout or None):
                        await connection.writable(or_answer=True)
                except TimeoutError:
                    pass  # RFC 9110 section 10.1.1: don't wait for ever, send it
                if connection.started or connection.lost:
                    return  # answered without the body
                self._consumed = True
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                body: bytes = message.get("body", b"")
                more: bool = message.get("more_body", False)
                if not chunked:
                    left -= len(body)
                    if left < 0 or (not more and left):
                        raise ClientLeft  # not as long as it said: cut, as a client that left
                if connection.lost or connection.transport.is_closing():
                    return
                if body:
                    connection.write(chunk(body) if chunked else body)
                if not more:
                    break
                if connection.sending_paused:
                    if limit:
                        connection.deadline = loop.time() + limit
                    await connection.writable()
                    connection.deadline = 0.0
            if chunked:
                connection.write(b"0\r\n\r\n")
            connection.uploaded = True
            connection.count()
            if await until_left(receive):
                raise ClientLeft
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            connection.fail(error)

    async def _answer(self, connection: Connection, reused: bool) -> Next | None:
        """Pass the answer on until the rest of it is here (None), or it has ended otherwise."""
        send = self._send
        started = False
        while True:
            if connection.done and connection.uploaded and connection.error is None:
                return None
            events = connection.events
            if not events or (not started and isinstance(connection.error, Malformed)):
                if connection.error is not None:
                    return self._judge(connection, reused, started)
                if connection.done:
                    return Next.RETURN
                waiter = connection.waiter = connection.pool.loop.create_future()
                await waiter
                continue
            message = events.pop(0)
            if message["type"] == "http.response.body":
                size = len(message["body"])
                await send(message)
                connection.taken(size)
            else:
                started = started or message["type"] == "http.response.start"
                await send(message)

    def _judge(self, connection: Connection, reused: bool, started: bool) -> Next:
        """Raises what the break amounts to, or says what to do."""
        evidence = Evidence(
            name=self._name,
            started=started,
            fed=connection.fed,
            reused=reused,
            bodyless=self._head.length == 0,
            local=connection.local,
            refused=connection.refused,
            body_taken=connection.watched,
            consumed=self._consumed or connection.watched,
            repeatable=self._repeatable(self._scope),
        )
        return judge(connection.error, evidence)


def chunk(body: bytes) -> bytes:
    """One chunk of a chunked body. An empty one is nothing, since it would end the body."""
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
