"""The connections of one upstream on one event loop: kept, bounded, expired, and closed with their loop.

One coarse ticker per pool (about ten times a second while something is in use) does what would else need a
timer per request: time limits, expiry, and the watch for clients that left. A pool ends with its loop: an
asynchronous generator registers with it, which every `asyncio.run` closes before the loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from deia_hardening.streams import until_left
from deia_hardening.upstream.addresses import Address
from deia_hardening.upstream.connection import Connection, quiet
from deia_hardening.upstream.settings import UpstreamSettings
from deia_hardening.upstream.verdict import ClientLeft, PoolFull, SilentPeer

_BACKLOG_PAUSE = 0.002  # a Unix socket's full backlog can't be waited for; looked at again after this


def share(limit: float, number: int, of: int) -> float | None:
    """How long the address `number` of so many may take, of the time to connect: one that is silent leaves some for the
    others. None: what is left. Pure."""
    return limit / of if limit and number < of else None


class Pool:
    """Connections to `addresses()` on `loop`. Used on that loop's thread only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: UpstreamSettings,
        addresses: Callable[[], Awaitable[list[Address]]],
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str = "",
        own: bool = False,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.closed = False
        self._addresses = addresses
        self._tls = tls
        self._tls_name = tls_name
        self.own = own
        self.watch_after = float(settings.watch_after)
        self.first_byte_timeout = float(settings.first_byte_timeout)
        self.idle_timeout = float(settings.idle_timeout)
        self._idle: list[Connection] = []
        self._active: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._ticking = False
        self._period = max(0.005, min(self._limits()) / 4)
        self._closer = self._close_with_loop()

    def _limits(self) -> list[float]:
        settings = self.settings
        limits = (
            settings.first_byte_timeout,
            settings.idle_timeout,
            settings.keep_alive,
            settings.watch_after * 2,
            0.4,
        )
        return [limit for limit in limits if limit > 0]

    async def register(self) -> None:
        """Tie the pool's end to the loop's. Called once, on the loop."""
        await self._closer.asend(None)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.close()
            await asyncio.sleep(0)  # transports close one turn later
            await asyncio.sleep(0)

    def take(self) -> Connection | None:
        """An idle connection that is still good, most recently used first; None when there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.alive(self.loop.time()):
                self._active.add(connection)
                if not self._ticking:
                    self._arm()
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection, or one that becomes free first. Raises OSError, TimeoutError, PoolFull."""
        full = False
        try:
            async with asyncio.timeout(self.settings.connect_timeout or None):
                if len(self._active) + self._opening >= self.settings.max_connections:
                    full = True
                    freed = await self._wait_for_place()
                    if freed is not None:
                        return freed
                    full = False
                else:
                    self._opening += 1
                try:
                    connection = await self._open()
                finally:
                    self._opening -= 1
        except BaseException as error:
            self._pass_place_on()
            if full and isinstance(error, TimeoutError):
                raise PoolFull from None
            raise
        if self.closed:
            connection.abort()
            raise ConnectionAbortedError("stopped while connecting")
        self._active.add(connection)
        if not self._ticking:
            self._arm()
        return connection

    async def _wait_for_place(self) -> Connection | None:
        """A freed connection, or None for a place to open one (then `_opening` counts it already)."""
        future: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future in self._waiting:
                self._waiting.remove(future)
            elif future.done() and not future.cancelled():
                self._give_back(future.result())
            raise

    def _give_back(self, connection: Connection | None) -> None:
        if connection is None:
            self._opening -= 1
            self._pass_place_on()
        else:
            self.put(connection)

    async def _open(self) -> Connection:
        last: OSError | None = None
        found = await self._addresses()
        for number, address in enumerate(found, 1):
            try:
                async with asyncio.timeout(share(self.settings.connect_timeout, number, len(found))):
                    return await self._open_at(address)
            except OSError as error:  # its time may be over, too
                last = error
        raise last or OSError(errno.EADDRNOTAVAIL, "no address to connect to")

    async def _open_at(self, address: Address) -> Connection:
        loop = self.loop
        local = address.family == socket.AF_UNIX
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if local:
                await self._connect_local(sock, address)
                connection = Connection(self, sock, local=True)
                await loop.create_unix_connection(lambda: connection, sock=sock)
                return connection
            await loop.sock_connect(sock, address.sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, None if self._tls else sock, local=False)
            name = self._tls_name if self._tls else None
            await loop.create_connection(lambda: connection, sock=sock, ssl=self._tls, server_hostname=name)
            return connection
        except BaseException:
            sock.close()
            raise

    @staticmethod
    async def _connect_local(sock: socket.socket, address: Address) -> None:
        while True:
            try:
                sock.connect(address.sockaddr)
                return
            except BlockingIOError:  # EAGAIN: the backlog is full, and no event tells when it no longer is
                await asyncio.sleep(_BACKLOG_PAUSE)

    def put(self, connection: Connection) -> None:
        """Take a connection back after a call: to the next waiter, to the idle ones, or closed."""
        self._active.discard(connection)
        if not connection.reusable or connection.lost or self.closed:
            connection.abort()  # nothing that is still unwritten is wanted
            if self._waiting:
                self._pass_place_on()
            return
        waiting = self._waiting
        while waiting:
            future = waiting.popleft()
            if not future.done():
                self._active.add(connection)
                future.set_result(connection)
                return
        idle = self._idle
        if len(idle) >= self.settings.max_idle:
            if not idle:
                connection.close()
                return
            idle.pop(0).close()
        connection.since = self.loop.time()
        idle.append(connection)

    def _pass_place_on(self) -> None:
        waiting = self._waiting
        while waiting and len(self._active) + self._opening < self.settings.max_connections:
            future = waiting.popleft()
            if not future.done():
                self._opening += 1
                future.set_result(None)

    def lost(self, connection: Connection) -> None:
        """A connection's end was seen. Its call, if there is one, hears of it by itself."""
        if connection.done and connection in self._idle:
            self._idle.remove(connection)

    def _arm(self) -> None:
        self._ticking = True
        self.loop.call_later(self._period, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        now = self.loop.time()
        for connection in tuple(self._active):
            if connection.deadline and now >= connection.deadline:
                if connection.started:
                    connection.fail(
                        SilentPeer("idle_timeout", f"silent for {self.settings.idle_timeout} s in its answer")
                    )
                else:
                    limit = self.settings.first_byte_timeout
                    connection.fail(SilentPeer("first_byte_timeout", f"no answer within {limit} s"))
            elif connection.receive is not None and now >= connection.watch_at and not connection.done:
                self._watch(connection)
        idle = self._idle
        keep = self.settings.keep_alive
        while idle and now - idle[0].since >= min(keep, idle[0].idle_seconds * 0.8 or keep):
            idle.pop(0).close()
        if (self._active or idle) and not self.closed:
            self._arm()

    def _watch(self, connection: Connection) -> None:
        receive, connection.receive = connection.receive, None
        assert receive is not None
        connection.watched = True

        async def watch() -> None:
            if await until_left(receive):
                connection.fail(ClientLeft())

        connection.task = self.loop.create_task(watch(), context=connection.context)
        connection.task.add_done_callback(quiet)

    def close(self) -> None:
        """Close what is idle now and what is in use after its call. New calls find no pool."""
        self.closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionAbortedError("stopped while waiting"))

    @property
    def sizes(self) -> tuple[int, int]:
        """How many connections are in use and idle."""
        return len(self._active), len(self._idle)
