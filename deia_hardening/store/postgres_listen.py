"""Hears from PostgreSQL of other machines' commits, by LISTEN on a connection of its own, on the background loop.

It only says that it is worth asking: polling goes on, seldom while this is up. It is up only where the server itself
holds the session; behind a pooler, which may give it to another client, and on a standby, there is only polling.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from deia_hardening.store.base import Blocking, StoreUnavailable
from deia_hardening.store.postgres_session import connect, of_this_process
from deia_hardening.store.settings import StoreSettings

if TYPE_CHECKING:
    import psycopg

CHANNEL: Final = "deia_store"
"""Each commit notifies it, with the namespace as the payload."""


class Listener:
    """One session that listens. `heard` and `up` may be read from any thread at any time."""

    def __init__(self, url: str, settings: StoreSettings) -> None:
        self._url = url
        self._settings = settings
        self._space = settings.namespace.encode()
        self._connection: psycopg.Connection[Any] | None = None
        self._turn: object | None = None
        self.up = False
        self.heard = 0
        """Grows with each commit that was told of, and whenever one may have been missed."""
        of_this_process.add(self)

    async def run(self, blocking: Blocking) -> None:
        """Listen until cancelled; connects again when the connection ends. Returns where listening is no use."""
        try:
            import psycopg
        except ImportError:
            return  # whoever asks the store is told
        while True:
            turn = self._turn = object()
            try:
                connection = await blocking(self._open, turn)
                if connection is None:
                    return
                await self._hear(connection)
            except (psycopg.Error, StoreUnavailable):
                pass  # away, or a standby: perhaps not for long
            finally:
                self.up = False
                self.heard += 1
                self._turn = None
                self._drop()
            await asyncio.sleep(self._settings.poll_interval)

    def _open(self, turn: object) -> psycopg.Connection[Any] | None:
        """Connect and listen; None where a pooler answers for the server. Blocking."""
        connection = self._connection = connect(self._url, self._settings)
        if self._turn is not turn:  # cancelled meanwhile
            self._drop()
            raise StoreUnavailable("the watch ended")
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        if row is None or row[0] != connection.info.backend_pid:
            return None
        connection.execute(f"LISTEN {CHANNEL}")
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    async def _hear(self, connection: psycopg.Connection[Any]) -> None:
        """Count what is told until the connection ends."""
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        wire = connection.pgconn

        def look() -> None:
            try:
                wire.consume_input()
                while (note := wire.notifies()) is not None:
                    self.heard += note.extra == self._space
            except Exception:
                loop.remove_reader(descriptor)
                if not over.done():
                    over.set_result(None)

        descriptor = connection.fileno()
        loop.add_reader(descriptor, look)
        try:
            self.up = True
            self.heard += 1  # what was committed before it listened
            look()  # what came with the answer to LISTEN
            await over
        finally:
            loop.remove_reader(descriptor)

    def forget(self) -> Any:
        """In a child: as never connected. Returns the parent's connection, to be kept and never used."""
        inherited, self._connection = self._connection, None
        self.up = False
        return inherited
