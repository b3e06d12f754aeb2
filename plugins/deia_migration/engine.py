"""A home's rollout in this process: which versions are up, which view the requests see, what the page and log say.

It takes part in every rollout of its home, whoever began it; `driver` decides and moves in the worker that leads.
After a crash it goes on from the log. Everything here runs on the background loop, but `tell` and `follow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from deia_hardening.errors import HardeningError
from deia_hardening.plugin import Host
from deia_hardening.store import Rebuilt
from deia_migration.book import FIELD, Book, base_of
from deia_migration.code import prune
from deia_migration.crew import Crew
from deia_migration.driver import Driver
from deia_migration.gates import Gates
from deia_migration.judge import Verdict
from deia_migration.log import Base
from deia_migration.mirror import Mirror
from deia_migration.outcome import Outcome
from deia_migration.rollout import Phase, Rollout
from deia_migration.sessions import SessionTable
from deia_migration.settings import MigrationSettings, VersionSettings
from deia_migration.split import Split
from deia_migration.traffic import Live, Router, Version
from deia_migration.versions import APP_NAME, AppHosted, VersionHost
from deia_migration.view import Shown, View
from deia_migration.watchers import Watcher

logger = logging.getLogger("deia_migration")
AGAIN, MOST_AGAIN = 1.0, 60.0
"""Seconds until a promoted version that could not start is tried again, doubled each time up to the second."""

_CANCELLED = 5.0
"""Seconds for cancelled tasks to end; what has not ended then is left to itself."""


class Engine:
    """One home's rollouts in this process. Everything here runs on the background loop, but `tell` and `follow`."""

    def __init__(self, host: Host, router: Router) -> None:
        self.host = host
        self.router = router
        self._table: SessionTable | None = None
        self._mirror: Mirror | None = None
        self.settings = MigrationSettings()
        self.rollout: Rollout | None = None
        self.base = Base()
        self.hosts: dict[str, VersionHost] = {}
        self.watcher: Watcher | None = None
        self.gates: Gates | None = None
        self.verdict: Verdict | None = None
        self.problem = ""
        self.driver = Driver(self)
        self.book = Book(host)
        self.crew = Crew(host.home)
        self.shown = Shown(host.home)
        self.view: View | None = None
        self.wake = asyncio.Event()
        self._waking = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.starting: asyncio.Task[None] | None = None
        self.start_error = ""
        self._leading: asyncio.Task[None] | None = None
        self.moving = asyncio.Lock()
        self.running = False

    # -- made on first use: the settings say how -------------------------------------------------------------

    def table_of(self, settings: MigrationSettings) -> SessionTable:
        """The session table, of the size that the first settings say (a restart changes it)."""
        if self._table is None:
            self._table = SessionTable(self.host.home / "run" / "migration-sessions", settings.session_slots)
        return self._table

    @property
    def table(self) -> SessionTable:
        return self.table_of(self.settings)

    def mirror_of(self, settings: MigrationSettings) -> Mirror:
        """The mirror, of these settings."""
        if self._mirror is None:
            self._mirror = Mirror(self.host, settings.mirror)
        self._mirror.follow(settings.mirror)
        return self._mirror

    # -- life -----------------------------------------------------------------------------------------------

    async def open(self, settings: MigrationSettings) -> None:
        """Take up what the log says: the version that serves, and a rollout that is not over."""
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.wake = asyncio.Event()
        self.moving = asyncio.Lock()
        self.running = True
        await self.host.blocking(self.host.page.open)
        await self.host.blocking(self.crew.enter)
        self.router.follow = self.follow
        self.router.state = self.host.page.state
        if any(text.startswith(("client:", "path:")) for text in settings.sessions):
            await self.host.blocking(self.table.open)  # sessions that clients make up are bound before any rollout
        async with self.moving:  # requests come already, and with them the page's word on what others do
            await self._recover()
        self.host.store.on_rebuilt(self.store_rebuilt)
        self._spawn(self._watch_page(), "page")

    async def _watch_page(self) -> None:
        """Notice a rollout that another worker began also while no request comes here; a memory read each time."""
        clock, look = self.host.clock, self.host.page.state  # the host cannot be asked once its app is collected
        pause, again = AGAIN, 0.0
        while self.running:
            await clock.sleep(float(self.settings.look))
            state = look()
            if state is not self.router.seen:
                self.router.refresh(state)
            if not self.active:
                with contextlib.suppress(HardeningError):  # it is still to be read; or the app is gone
                    await self.catch_up()
                    if self._stands_in() and clock.monotonic() >= again:
                        await self._try_again()
                        pause = min(2 * pause, MOST_AGAIN)
                        again = clock.monotonic() + pause

    def _stands_in(self) -> bool:
        """Whether the app itself serves because the promoted version could not start here."""
        return not self.active and _promoted(self.base) and self.router.base is self.router.app

    async def _try_again(self) -> None:
        """Start the promoted version again: what it had needed may be there by now."""
        async with self.moving:
            if self.running and self._stands_in() and await self._serve_by(self.base) is not self.router.app:
                self.problem = ""

    async def close(self) -> None:
        """Stop everything that runs here; the log says how to go on."""
        self.running = False
        self.wake.set()  # before 3.12, wait_for may swallow a cancellation that comes with its result
        self.router.state = lambda: None
        self.router.seen = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCELLED)
        self.router.live = None
        self.router.base = self.router.app
        await asyncio.gather(*(hosted.stop(leaving=True) for hosted in self.hosts.values()))
        self.hosts.clear()
        await self.host.blocking(self.crew.remove)
        await self.host.blocking(self.crew.leave)
        self.table.close()

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"deia-migration-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.problem = f"{task.get_name()} failed: {task.exception()!r}"
            logger.error("%s", self.problem, exc_info=task.exception())

    @property
    def driving(self) -> bool:
        """Whether this worker is the one that decides."""
        return self.driver.driving

    @property
    def active(self) -> bool:
        """Whether a rollout is under way."""
        return self.rollout is not None and not self.rollout.phase.over

    def runs(self, rollout: str) -> bool:
        """Whether this process runs and this rollout is the one under way."""
        return self.running and self.active and self.rollout is not None and self.rollout.id == rollout

    async def store_rebuilt(self, rebuilt: Rebuilt) -> None:
        """The store was damaged while serving: it gets the rollout back."""
        if self.running:
            async with self.moving:
                await self.book.put_back(self.rollout)

    async def _recover(self) -> None:
        """Start from what is written down."""
        state, self.base = await self.book.recover()
        if _promoted(self.base) and (state is None or self.base.name != state.candidate or state.phase.over):
            await self._serve_by(self.base)
        if state is None or state.phase.over:
            self.rollout = state
            return
        await self.attach(state)

    async def _serve_by(self, base: Base) -> Version:
        """Have this version serve while no rollout runs; a promoted one is brought up where it does not run here."""
        found = self.router.app
        if _promoted(base):
            hosted = self.hosts.get(base.name)
            if hosted is None or not _is(hosted.version, base):
                hosted = await self._host_base(base, hosted)
            found = hosted.version if hosted is not None else found
        self.router.base = found
        return found

    async def _host_base(self, base: Base, old: VersionHost | None) -> VersionHost | None:
        """Bring up a promoted version, in place of another of its name; None where it does not start."""
        hosted = self._make(base.name, base.target, base.digest)
        try:
            await hosted.start(lambda reason: self.poke())
            hosted.version.ready = True
        except Exception as error:
            self.problem = (
                f"the promoted version {base.name} could not start ({error}): the app itself serves until it can"
            )
            logger.error("%s", self.problem)
            await hosted.stop()
            return None
        self.hosts[base.name] = hosted
        if old is not None:
            await old.stop()
        return hosted

    def _make(self, name: str, target: str, digest: str) -> VersionHost:
        if name == APP_NAME:
            return AppHosted(self.host, self.router.app, self.router.call_app)
        settings = self.settings.versions.get(name)
        if digest:  # deployed: the copy is what runs
            settings = VersionSettings(target=target, folder=str(self.host.home / "versions" / digest))
        elif settings is not None and settings.target != target:
            settings = None
        return VersionHost(self.host, name, target, digest, settings, self.settings.environment)

    # -- attaching: this worker takes part in a rollout -------------------------------------------------------

    async def attach(self, state: Rollout) -> None:
        """Take part in a rollout: views, watcher, the candidate's start, and the wish to drive it."""
        if self.rollout is not None and self.rollout.id == state.id and self.router.live is not None:
            self.rollout = state
            return
        self.rollout = state
        await self.host.blocking(self.table.open)
        await self.host.blocking(self.crew.prepare)
        stable = await self._serve_by(Base(state.stable, state.stable_target, state.stable_digest))
        self.base = base_of(state)
        for name, old in list(self.hosts.items()):  # of a rollout whose end was not seen here
            if old.version is not stable:
                del self.hosts[name]
                await old.stop()
        hosted = self._make(state.candidate, state.target, state.digest)
        self.hosts[state.candidate] = hosted
        self.start_error = ""
        self.driver.reset()
        self.verdict = self.view = None
        self.watcher = Watcher(self.settings, state.plan, self.poke_from_anywhere, lambda: self.driver.driving)
        if self._mirror is not None:
            self._mirror.reset()
        self.watcher.condemned = partial(self.driver.condemned, state.id)
        self.gates = Gates(self.host, self.settings, state.plan, self._mirror)
        self.router.live = Live(
            rollout=state.id,
            split=Split(state.id, str(os.getpid())),
            weight=state.weight,
            stable=stable,
            candidate=hosted.version,
        )
        self.router.seen = None  # what the page said meanwhile was of a rollout that this worker did not know
        self.starting = self._spawn(self._start_candidate(hosted), "start")
        self._spawn(self.driver.attend(state.id), "attend")
        if self._leading is None or self._leading.done():
            self._leading = self._spawn(self.driver.lead(), "lead")

    async def _start_candidate(self, hosted: VersionHost) -> None:
        try:
            await hosted.start(lambda reason: self.poke())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.start_error = str(error) or type(error).__name__
        else:
            # It is given requests as soon as it answers; how many, the weight says.
            readiness = await hosted.ready()
            hosted.version.ready = readiness.ok
        self.poke()

    def poke(self) -> None:
        self._waking = False
        self.wake.set()

    def poke_from_anywhere(self) -> None:
        """Have the rollout looked at now. Callable from any thread; many calls cost one wake-up."""
        loop = self.loop
        if loop is not None and not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.poke)

    def tell(self, outcome: Outcome) -> None:
        """What a layer tells of an answered request. Any thread."""
        watcher = self.watcher
        if watcher is not None:
            watcher.tell(outcome)

    def follow(self, state: Any) -> None:
        """The page has changed: take its weight at once; the rest follows on the background loop. Any thread."""
        field = state.get(FIELD) if state is not None else None
        if not isinstance(field, Mapping):
            return
        live = self.router.live
        if live is not None and field.get("rollout") == live.rollout:
            if field.get("latched"):
                self.router.latch(live.rollout)
            else:
                self.router.set_weight(float(field.get("weight", 0.0)))
        self.poke_from_anywhere()
        known = self.rollout
        missed = not field.get("over") or known is None or known.id != field.get("rollout")
        if live is None and field.get("rollout") and missed:
            self.host.runtime.submit(self.catch_up)

    async def catch_up(self) -> None:
        """`refresh`, for who does not hold `moving`. Raises StoreError."""
        async with self.moving:
            if self.running:
                await self.refresh()

    async def refresh(self) -> None:
        """Take up what another worker has written: nothing is decided by what this one remembers. Raises StoreError.

        For the holder of `moving`.
        """
        if self.book.changed():
            try:
                await self.reload()
            except BaseException:
                self.book.unread()  # it was not taken up: again at the next look
                raise

    async def reload(self) -> None:
        state = await self.book.read()
        if state is None:
            return
        before = self.rollout
        if before is not None and before.id == state.id and (self.router.live is not None or before.phase.over):
            self.rollout = state
            if state.latched:
                self.router.latch(state.id)
            else:
                self.router.set_weight(state.weight)
            if state.phase is not before.phase:
                await self.entered(state)
        elif state.phase.over:
            await self._pass_over(state)
        else:
            await self.attach(state)

    async def _pass_over(self, state: Rollout) -> None:
        """A rollout has begun and ended unseen by this worker (it slept, it was starting): take up what it came to."""
        self.base = base_of(state)
        serves = await self._serve_by(self.base)
        self.router.live = None
        self.rollout = state  # it is over for this worker once it serves what the others serve
        for name, hosted in list(self.hosts.items()):
            if hosted.version is not serves:
                del self.hosts[name]
                await hosted.stop()

    async def entered(self, state: Rollout) -> None:
        """A phase was entered: what follows from it in this process."""
        live = self.router.live
        if live is None:
            return
        self.base = base_of(state)  # in every phase: a worker may have seen none between the ramp and the end
        if state.phase is Phase.ROLLING_BACK:
            self.router.latch(state.id)
            live.candidate.lost = live.candidate.lost or not live.candidate.ready
            if state.cut:
                await self.host.blocking(self.table.drop, live.candidate.number)
                live.candidate.cut_all()
        elif state.phase.over:
            leaves = live.candidate if state.latched else live.stable
            stays = live.stable if state.latched else live.candidate
            self.router.base = stays
            self.router.live = None
            await self.host.blocking(self.table.drop, leaves.number)
            hosted = self.hosts.get(leaves.name)
            if hosted is not None and hosted.version is leaves:
                del self.hosts[leaves.name]
                leaves.cut_all()
                await hosted.stop()
            if self.gates is not None:
                await self.gates.close()
            in_use = frozenset((self.base.digest,)) - {""}
            await self.host.blocking(prune, self.host.home / "versions", self.settings.keep_code, in_use)


def _is(version: Version, base: Base) -> bool:
    """Whether this is that version, and no other of its name."""
    return (version.target, version.digest) == (base.target, base.digest)


def _promoted(base: Base) -> bool:
    """Whether another version than the wrapped app serves."""
    return base.name not in ("", APP_NAME)
