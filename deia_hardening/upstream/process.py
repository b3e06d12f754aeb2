"""An upstream that is a child process on a Unix socket: started, kept alive, called by HTTP.

One process per home supervises: it holds the lock of the run folder, goes on with the kept children of the last
supervisor and ends its other survivors, starts children and starts them again with growing pauses. Other workers of
the home call the same child through its record, and one of them takes over when the supervisor is gone; until then
calls are not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.errors import HardeningError
from deia_hardening.outer import Word, parent_of
from deia_hardening.runtime import runtime
from deia_hardening.types import Receive, Scope, Send
from deia_hardening.upstream import addresses, keeping
from deia_hardening.upstream.base import NotSent, Readiness, UpstreamStartError
from deia_hardening.upstream.child import Child, Order
from deia_hardening.upstream.child_context import ChildState, ContextSource
from deia_hardening.upstream.http import HttpUpstream
from deia_hardening.upstream.records import Records
from deia_hardening.upstream.request import Route
from deia_hardening.upstream.settings import ProcessSettings, UpstreamSettings
from deia_hardening.upstream.supervision import Supervision

_logger = logging.getLogger("deia_hardening.child")
_LOOK_AGAIN = 0.5  # how often a worker that does not supervise looks whether it must, and where the child is


def pause_before(deaths: int, settings: ProcessSettings) -> float:
    """Seconds to wait before a child that died `deaths` times in a row is started again. Pure."""
    return float(min(settings.backoff_max, settings.backoff_min * 2 ** min(deaths - 1, 30)))


class ProcessUpstream(HttpUpstream):
    """A child process. See `Upstream` for the contract; `tell`, `on_record`, `on_death` are its own."""

    own = True

    def __init__(
        self,
        name: str,
        target: str,
        settings: UpstreamSettings,
        home: Path,
        *,
        context: ContextSource | None = None,
        repeatable: Callable[[Scope], bool] | None = None,
    ) -> None:
        route = Route(host=b"localhost", keep_host=True)
        super().__init__(name, settings, route, path="-", context=context, repeatable=repeatable)
        self._found = []
        self._target = target
        self._home = home.absolute()
        self._supervision = Supervision.of(self._home)
        self._keeper: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._up: asyncio.Event | None = None
        self._why = "not started"
        self._adopted = False
        self._counted = False
        self._state: ChildState | None = None
        self._records = Records(name, self._home)
        self._unlisten: Callable[[], None] | None = None
        self._deaths: list[Callable[[str], None]] = []
        self.restarts = 0
        """How often the child was started again after it died."""

    @property
    def pid(self) -> int | None:
        """The child's process id while this process supervises it and it accepts calls."""
        child = self._child
        return child.pid if child is not None and child.ready.is_set() and not child.exited.is_set() else None

    def tell(self, state: ChildState) -> None:
        """Pass revision, mode and flags to the child, now and whenever it starts again. Any thread.

        The hardened app that runs on this home does it by itself when one of them changes.
        """
        self._state = state
        runtime().loop.call_soon_threadsafe(self._pass_state)

    def _pass_state(self) -> None:
        if self._child is not None and self._state is not None and not self._child.exited.is_set():
            self._child.tell(self._state)

    def on_record(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call `callback(event)` on the background loop for each record that the child hands up.

        The front's audit plugin keeps them without being asked.
        """
        self._records.watchers.append(callback)

    def on_death(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` on the background loop when the child is gone without being told to."""
        self._deaths.append(callback)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is None and not self._stopped:
            raise NotSent(self._name, "refused", f"the child is not there: {self._why}")
        await super().__call__(scope, receive, send)

    async def start(self) -> None:
        await runtime().run(self._start)

    async def stop(self) -> None:
        await runtime().run(self._stop)

    async def leave(self) -> None:
        """`stop`, of a process that goes while others of its home stay.

        Where the child is kept (`keeping`), it goes on under the worker that supervises next. Else the others stop
        calling it before it ends, so that no call meets a child that is on its way out; a successor starts another one
        at once, while this one still answers what it has begun.
        """
        await runtime().run(self._leave)

    async def ready(self) -> Readiness:
        if self._key is None:
            return Readiness(False, self._why, absent=True)
        return await super().ready()

    async def _start(self) -> None:
        self._stopped = False
        if self._keeper is None or self._keeper.done():
            self._heed_parent()
            self._up = asyncio.Event()
            self._supervision.enter()
            self._counted = True
            self._keeper = asyncio.create_task(self._keep())
        assert self._up is not None
        waiting = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait({waiting, self._keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._keeper.done():
            keeper, self._keeper = self._keeper, None
            keeper.result()  # raises the StartError

    async def _stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        unlisten, self._unlisten = self._unlisten, None
        if unlisten is not None:
            unlisten()
        await super().stop()
        self._why = "stopped"
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})

    async def _leave(self) -> None:
        child, supervision, line = self._child, self._supervision, keeping.line()
        alive = child is not None and child.ready.is_set() and not child.exited.is_set()
        if child is not None and alive and child.kept and line is not None and not line.ending:
            self._child = None
            await child.let_go()
        elif child is not None and not child.exited.is_set() and await runtime().blocking(supervision.rundir.shared):
            await runtime().blocking(supervision.rundir.remove, self._name, child.pid)
            await asyncio.sleep(2 * _LOOK_AGAIN)
            if self._counted:
                self._counted = False
                supervision.leave()
        await self._stop()

    async def _keep(self) -> None:
        """Supervise, or follow who does, until cancelled. A first start that fails ends it with
        StartError."""
        settings = self.settings.process
        try:
            while True:
                if await self._lead(settings):
                    self._supervision.clean(settings.stop_timeout)
                    await self._supervise()
                await self._follow()
                await asyncio.sleep(_LOOK_AGAIN)
        finally:
            await self._end_child()
            self._key = None
            if self._counted:
                self._counted = False
                self._supervision.leave()

    async def _lead(self, settings: ProcessSettings) -> bool:
        """Whether this process supervises. What hinders that ends a first start, and is tried again later on."""
        try:
            return await runtime().blocking(self._supervision.lead, settings.stop_timeout)
        except (OSError, HardeningError) as error:
            if self._up is not None and not self._up.is_set():
                raise UpstreamStartError(self._name, str(error)) from error
            _logger.error("child %s can't be supervised: %s", self._name, error)
            return False

    async def _supervise(self) -> None:
        settings = self.settings.process
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            began = loop.time()
            try:
                reason = await self._run_once(settings)
            except (OSError, HardeningError) as error:  # a full disk: it may pass
                reason = f"it could not be started: {error}"
            if self._up is not None and not self._up.is_set():
                if self._adopted:
                    continue  # it was on its way out
                raise UpstreamStartError(self._name, reason)
            self.restarts += 1
            deaths = 1 if loop.time() - began >= settings.backoff_max else deaths + 1
            self._why = reason
            _logger.error("child %s is gone (%s); starting it again", self._name, reason)
            for callback in self._deaths:
                try:
                    callback(reason)
                except Exception:
                    _logger.exception("who was told of the end of child %s failed", self._name)
            await asyncio.sleep(pause_before(deaths, settings))

    async def _run_once(self, settings: ProcessSettings) -> str:
        """Start the child and stay with it to its end; returns the reason of the end."""
        rundir = self._supervision.rundir
        await runtime().blocking(rundir.prepare)
        path = await runtime().blocking(rundir.socket_path, self._name)
        key = self._key or secrets.token_bytes(32)
        order = Order(self._name, self._target, self._home, path, key, settings)
        child = await self._adopt(order, settings)
        adopted = self._adopted = child is not None
        if child is None:
            child = Child(order, self._records)
        self._child = child
        try:
            if not adopted:
                try:
                    await child.spawn()
                except OSError as error:
                    return f"it could not be started: {error}"
                digest = await runtime().blocking(order.digest)
                await runtime().blocking(rundir.note, self._name, child.pid, str(path), key.hex(), digest)
                await child.keep()
            path, key = child.order.socket, child.order.key
            if self._state is not None:
                child.tell(self._state)
            if not await self._until_ready(child, settings):
                waited = not child.exited.is_set()
                await child.end(settings.stop_timeout)
                late = f"not ready within {settings.start_timeout}; " if waited else ""
                return late + child.describe_end()
            self._found = [addresses.unix(str(path))]
            self._key = key
            if self._up is not None:
                self._up.set()
            await child.exited.wait()
            return child.describe_end()
        finally:
            if self._child is child:  # else it was let go
                await self._end_child()
                await runtime().blocking(rundir.remove, self._name, child.pid)

    async def _adopt(self, order: Order, settings: ProcessSettings) -> Child | None:
        """The child that the supervisor before has left, where it is what is ordered; else it is ended."""
        orphan = self._supervision.claim(self._name)
        if orphan is None:
            return None
        record, kept = orphan
        if record.order != await runtime().blocking(order.digest):
            _logger.info("child %s was started for another order: it is replaced", self._name)
            await runtime().blocking(self._supervision.end_orphan, orphan, settings.stop_timeout)
            return None
        _logger.info("child %s[%d] goes on under this worker", self._name, record.pid)
        order = attrs.evolve(order, socket=Path(record.socket), key=bytes.fromhex(record.key))
        return Child.adopt(order, self._records, kept)

    @staticmethod
    async def _until_ready(child: Child, settings: ProcessSettings) -> bool:
        tasks = {asyncio.create_task(child.ready.wait()), asyncio.create_task(child.exited.wait())}
        try:
            await asyncio.wait(tasks, timeout=settings.start_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return child.ready.is_set() and not child.exited.is_set()

    async def _end_child(self) -> None:
        child = self._child
        if child is not None and child.pid and not child.exited.is_set():
            # Its record goes first: if this process is killed now, nobody goes on with a child that was told to end.
            await runtime().blocking(self._supervision.rundir.remove, self._name, child.pid)
            ending = asyncio.ensure_future(child.end(self.settings.process.stop_timeout))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(ending)
            await ending

    async def _follow(self) -> None:
        """Another process supervises: take the child's place and key from its record."""
        record = await runtime().blocking(self._supervision.rundir.read, self._name)
        if record is None:
            self._key = None
            self._why = "its supervisor has not started it"
            return
        self._found = [addresses.unix(record.socket)]
        self._key = bytes.fromhex(record.key)
        if self._up is not None:
            self._up.set()

    def _heed_parent(self) -> None:
        """Tell the child what the hardened app of this home says, now and at each change."""
        parent = parent_of(self._home)
        if parent is None or self._unlisten is not None:
            return

        def pass_on(word: Word) -> None:
            flags = {} if self._state is None else self._state.flags
            self._state = ChildState(word.revision, word.mode, flags)
            self._pass_state()

        self._unlisten = parent.listen(pass_on)
        pass_on(parent.word)
