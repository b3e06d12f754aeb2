"""The store as coroutines see it: the blocking backend on core-owned threads, watches and leases on top."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.store.base import (
    Backend,
    Blocking,
    Change,
    Entry,
    Lease,
    Rebuilt,
    Revisions,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    Write,
    area_of,
)
from deia_hardening.store.epoch import HomePage, area_slot
from deia_hardening.store.held import hold
from deia_hardening.store.settings import StoreSettings
from deia_hardening.store.transaction import PAGE_PREFIX

_BATCH: Final = 500  # changes read at once by a watch


class SharedStore:
    """The `Store` of a home. `sync` is the same without coroutines, `page` the home's mapped page."""

    def __init__(
        self,
        backend: Backend,
        page: HomePage,
        settings: StoreSettings,
        blocking: Blocking,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.sync: Backend = backend
        self.page = page
        self._settings = settings
        self._blocking = blocking
        self._clock = clock
        self._on_rebuilt: list[Callable[[Rebuilt], Awaitable[None]]] = []
        self._told: Rebuilt | None = None

    async def start(self) -> None:
        """Open the store, check it, and tell those who asked when it had to be rebuilt. Raises StoreError."""
        await self._blocking(self.sync.start)
        await self.tell_rebuilt()

    async def stop(self) -> None:
        """Close what is open."""
        await self._blocking(self.sync.close)

    def close(self) -> None:
        """The same from a plain thread. Blocking."""
        self.sync.close()

    async def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None. Raises StoreError."""
        return await self._blocking(self.sync.get, key)

    async def put(self, key: str, value: bytes, *, if_revision: int | None = None) -> int:
        """Write durably; returns the new revision. Raises StaleRevision (0: the key must not exist), StoreError."""
        return (await self.apply([Write(key, value, if_revision)]))[0]

    async def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete durably; whether the key was there. Raises StaleRevision, StoreError."""
        return (await self.apply([Write(key, None, if_revision)]))[0] > 0

    async def apply(self, writes: Sequence[Write]) -> Revisions:
        """All writes in one commit, or none. Returns each revision; 0 for the deletion of what was not there."""
        return await self._blocking(self.sync.apply, writes)

    async def list(self, prefix: str) -> list[tuple[str, Entry]]:
        """Every key that starts with `prefix`, in order."""
        return await self._blocking(self.sync.list, prefix)

    async def revision(self) -> int:
        """The newest revision of the store: what a watch can start from."""
        return await self._blocking(self.sync.revision)

    async def watch(self, prefix: str, *, since: int | None = None) -> AsyncIterator[Change]:
        """Every change below `prefix`, in the order of commits, until the iteration ends. Background loop only.

        `since` is the revision to start after: None for now, 0 for the present entries first. Several changes of
        one key between two looks are one. Raises WatchExpired when it fell behind by more than `store.tombstones`.
        """
        async for change in self._watch(prefix, since, lambda: False):
            yield change

    async def _watch(self, prefix: str, since: int | None, over: Callable[[], bool]) -> AsyncIterator[Change]:
        slot = area_slot(area_of(prefix)) if "/" in prefix else None
        seen = await self.revision() if since is None else since
        clock, page, backend = self._clock, self.page, self.sync
        counter, heard, due, stamp = -1, 0, 0.0, None
        while not over():
            ask = False
            if (now_counter := page.counters() if slot is None else page.area(slot)) != counter:
                counter, ask = now_counter, True
            if (now_heard := backend.heard()) != heard:
                heard, due = now_heard, 0.0
            if clock.monotonic() >= due:
                due = clock.monotonic() + backend.poll_interval()
                now_stamp = await self._blocking(backend.stamp)
                ask = ask or now_stamp is None or now_stamp != stamp
                stamp = now_stamp
            while ask:
                try:
                    changes = await self._blocking(backend.changes, prefix, seen, _BATCH)
                except (StoreUnavailable, StoreDamaged):
                    due, stamp = 0.0, None  # away for now: ask again at the next look
                    break
                for change in changes:
                    seen = change.revision
                    yield change
                ask = len(changes) == _BATCH
            await clock.sleep(self._settings.watch_interval)

    async def keep(self) -> None:
        """Keep the home's page in step with the store, for as long as the service runs. Background loop only.

        It brings what another machine wrote (PostgreSQL) or what a worker that died had not shown yet, and calls
        the `on_rebuilt` callbacks when the store had to be rebuilt while serving. Runs until cancelled.
        """
        async with asyncio.TaskGroup() as beside:
            beside.create_task(self.sync.listen(self._blocking), name="deia-store-listen")
            await self._keep()

    async def _keep(self) -> None:
        while True:
            try:
                identity = await self._blocking(self.sync.identity)
                await self.tell_rebuilt()
                async for change in self._watch("", 0, functools.partial(self._replaced, identity)):
                    await self._blocking(self._show, change)
            except StoreError:
                pass
            await self._clock.sleep(self._settings.watch_interval)

    def _replaced(self, identity: str) -> bool:
        """Whether the page shows another store than `identity`: the file was replaced, all begins anew."""
        return self.page.state().store not in ("", identity)

    def _show(self, change: Change) -> None:
        identity = self.sync.identity()  # of the store as it is now: one of before would hide that it was replaced
        fields: list[tuple[str, bytes | None, int]] = []
        if change.key.startswith(PAGE_PREFIX):
            fields = [
                (
                    change.key[len(PAGE_PREFIX) :],
                    change.entry.value if change.entry else None,
                    change.revision,
                )
            ]
        with contextlib.suppress(OSError, ValueError):  # health says so already
            self.page.open()
            self.page.publish(fields, areas={area_of(change.key): change.revision}, store=identity)

    def lease(self, name: str, ttl: float, *, wait: bool = True) -> AbstractAsyncContextManager[Lease]:
        """Hold the lease `name` while the block runs; it renews itself. Background loop only.

        `ttl` in seconds is how long others wait after the holder died. Raises LeaseHeld with `wait=False`.
        """
        return hold(self.sync, self._blocking, self._clock, name, ttl, wait)

    def on_rebuilt(self, callback: Callable[[Rebuilt], Awaitable[None]]) -> None:
        """Have `callback` awaited (at start, in every process) when the store is one that replaced a damaged one.

        It puts back what must not be lost, from journals, with `if_revision=0`: several processes may be at it.
        """
        if callback not in self._on_rebuilt:
            self._on_rebuilt.append(callback)

    async def tell_rebuilt(self) -> None:
        """Call the callbacks, once per rebuilt store and process; again, when one of them raised."""
        rebuilt = await self._blocking(self.sync.rebuilt)
        if rebuilt is not None and rebuilt != self._told:
            for callback in tuple(self._on_rebuilt):
                await callback(rebuilt)
            self._told = rebuilt  # now: one that failed is called again

    def health(self) -> Sequence[str]:
        """What is wrong or worth knowing, in sentences."""
        return self.sync.health()


def open_store(
    settings: StoreSettings, state_folder: Path, *, blocking: Blocking, clock: Clock = SYSTEM_CLOCK
) -> SharedStore:
    """The store that the settings name. Opens nothing; raises SettingsError for a URL it does not know."""
    page = HomePage(state_folder / "page")
    return SharedStore(open_backend(settings, state_folder, page, clock), page, settings, blocking, clock)


def open_backend(
    settings: StoreSettings, state_folder: Path, page: HomePage | None = None, clock: Clock = SYSTEM_CLOCK
) -> Backend:
    """The blocking store by itself, for tools without a loop."""
    from deia_hardening.errors import SettingsError
    from deia_hardening.store.sqlite import SqliteStore

    url = settings.url
    if url == "sqlite":
        return SqliteStore(state_folder / "store.db", page, settings, clock)
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return SqliteStore(Path("/" + url.removeprefix("sqlite:///").lstrip("/")), page, settings, clock)
    if url.startswith(("postgresql://", "postgres://")):
        from deia_hardening.store.postgres import PostgresStore

        return PostgresStore(url, page, settings, clock)
    raise SettingsError(
        f"store.url: '{url.partition(':')[0][:32]}' is no store; allowed: sqlite, sqlite:///path, postgresql://…"
    )
