"""`DisasterRecovery`: the durable state of a home, and everything that keeps it recoverable.

All hardened apps of a process that share a home share one engine. Nothing is opened before it is needed: where there
never was any state, the first write makes it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from deia_hardening.events import BotChanged
from deia_hardening.services import NoSplit, VersionSplit
from deia_recovery.backups import Backups
from deia_recovery.crash import Verdict
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.files import FileLock
from deia_recovery.engine.generation import Generation, folder_name
from deia_recovery.errors import StateError
from deia_recovery.events import StateOpened
from deia_recovery.inbox.replay import Replayer
from deia_recovery.measures import Measures
from deia_recovery.objects import load_objects
from deia_recovery.opening import Opened, StateHome, in_doubt
from deia_recovery.reporting import Reporting
from deia_recovery.settings import RecoverySettings
from deia_recovery.stores import steps
from deia_recovery.stores.assignments import Assignments
from deia_recovery.stores.events import RegistryChanged
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State
from deia_recovery.stores.tasks import TaskQueue

if TYPE_CHECKING:
    from deia_hardening.plugin import Host

_PURGED_AT_ONCE = 1_000
"""Finished tasks of a queue that one transaction removes: a purge never holds the writer for long."""
_PURGE_WAIT = 60.0
"""Seconds that a purge waits for its transaction; the next purge takes what is left."""


class Shared:
    """The one engine of a home in this process, with who uses it."""

    def __init__(self, root: Path, settings: RecoverySettings, host: Host) -> None:
        self.root = root
        self.home = StateHome(root)
        self.engine = Engine(root / folder_name(1), settings.engine(), host.clock)
        self.state = State(self.engine)
        self.opened: Opened | None = None
        self.users = 0


_lock = threading.Lock()
_shared: dict[Path, Shared] = {}


class DisasterRecovery(Reporting):
    """Durable state and its backups. `current(DisasterRecovery)` finds it; registries and queues use it by themselves.

    Attributes:
        state: what bound handles work on: `Registry("bots", Bot, state=recovery.state)`.
        backups: taking, proving and restoring snapshots.
        opened: how the state was found at the start (None before anything needed it).
        offline: whether it was made for one command, with no service up.
    """

    def __init__(self, host: Host, settings: RecoverySettings, *, offline: bool = False) -> None:
        self._host = host
        self.offline = offline
        self.settings = settings
        self.root = host.home / "state" / "recovery"
        with _lock:
            shared = _shared.get(self.root)
            if shared is None:
                shared = _shared[self.root] = Shared(self.root, settings, host)
            shared.users += 1
        self._shared = shared
        self.engine = shared.engine
        self.state = shared.state
        self.state.split = self._split
        self.backups = Backups(self)
        self.replayer = Replayer(host, self.state)
        self.measures = Measures(self, host.metrics)
        self.problem = ""
        self._starting = False
        self._looked_at = -1
        self._started = host.clock.wall()
        if shared.opened is None:
            self.engine.opener = self._open
        self.engine.barrier = self._confirm if settings.remote.url and settings.remote.synchronous else None
        self.engine.tell = self._tell
        self.engine.listened = partial(host.events.heard, RegistryChanged)

    def _split(self) -> VersionSplit:
        return self._host.services.get(VersionSplit) or NoSplit()

    # -- handles ------------------------------------------------------------------------------------------------

    def registry(self, name: str, kind: Any = Any) -> Registry[Any]:
        """A registry bound to this state."""
        return Registry(name, kind, state=self.state)

    def queue(self, name: str, kind: Any = Any, **options: Any) -> TaskQueue[Any]:
        """A task queue bound to this state."""
        return TaskQueue(name, kind, state=self.state, **options)

    def assignments(self, name: str = "assignments") -> Assignments:
        """Assignments bound to this state."""
        return Assignments(name, state=self.state)

    # -- opening and closing --------------------------------------------------------------------------------------

    @property
    def opened(self) -> Opened | None:
        return self._shared.opened

    @property
    def generation(self) -> Generation | None:
        """The generation in force, None while nothing was opened."""
        opened = self._shared.opened
        if opened is None:
            return None
        return attrs.evolve(opened.generation, number=self.engine.generation, folder=self.engine.folder)

    def adopt(self) -> None:
        """Change over to the generation that was just put in force, and lease anew what was in flight. Blocks."""
        self._release_all(blame=False)

    def _release_all(self, *, blame: bool) -> int:
        return self.engine.write(partial(steps.release_all, blame=blame), grows=False, guarded=True).result(_PURGE_WAIT)

    def _confirm(self, position: int) -> None:
        self.backups.confirm(position)

    def start(self) -> Opened | None:
        """Open what is there, with owner lock and verdict. Blocks. None where there is nothing yet to be opened."""
        if self.engine.opener is None:
            return self._shared.opened
        if not self._shared.home.exists() and not self.backups.any():
            return None
        before = self._shared.opened
        self._starting = True
        try:
            self.engine.ensure()
        finally:
            self._starting = False
        opened = self._shared.opened
        if opened is not None and before is None:
            released = 0
            if in_doubt(opened.verdict) or opened.restored:
                released = self._release_all(blame=in_doubt(opened.verdict))
            self._say(opened, released)
            load_objects(self)
        return opened

    def _open(self) -> None:
        """The engine's opener: on whichever thread first needs the state."""
        host = self._host
        home = self._shared.home
        with contextlib.suppress(StateError, OSError):  # what does not let it be told is met again below, and said
            self.backups.note_fork()
        opened = home.open(
            host.clock.wall(),
            lifespan=host.server.open,
            restore=self.backups.restore_at_start,
            automatic=self.settings.restore == "auto",
        )
        self._shared.opened = opened
        self.engine.place(opened.generation.folder, opened.generation.number)
        if not self._starting:
            self._say(opened, 0)

    def _say(self, opened: Opened, released: int) -> None:
        host = self._host
        verdict = opened.verdict
        told = getattr(host, "verdict", None)
        if callable(told):
            told({"first": "clean"}.get(verdict.kind, verdict.kind))
        entry: dict[str, Any] = {
            "kind": "recovery.opened",
            "verdict": verdict.kind,
            "evidence": verdict.evidence,
            "generation": opened.generation.number,
            "created": opened.created,
            "restored": opened.restored,
            "released": released,
        }
        if opened.live is not None:
            entry["verified_pages"] = opened.live.pages
            entry["problems"] = [str(one) for one in opened.live.problems[:10]]
        if opened.notes:
            entry["notes"] = list(opened.notes)
        self.journal(entry)
        host.events.emit(
            StateOpened(
                verdict=verdict.kind,
                evidence=verdict.evidence,
                restored=opened.restored,
                released=released,
                outcome="failure" if opened.live is not None and not opened.live.ok else "success",
            )
        )

    def stop(self) -> None:
        """Write the clean stop and close. Blocks."""
        with _lock:
            self._shared.users -= 1
            last = self._shared.users <= 0
            if last and _shared.get(self.root) is self._shared:
                del _shared[self.root]
        if not last:
            return
        if self._shared.opened is not None:
            if self.engine.peek() >= 0:
                self.backups.ship(wait=True, trim=False, mirror="remote" not in self.backups.problems)
            try:
                self.engine.checkpoints.run()
            except Exception as error:
                self.journal({"kind": "recovery.problem", "detail": f"the last checkpoint failed: {error}"})
            self.engine.close()
        if self._shared.home.ownership.held:
            self._shared.home.ownership.leave(self._host.clock.wall())
            self.journal({"kind": "recovery.stopped", "clean": True})

    async def replay(self) -> None:
        """Run stored requests, if there are any that could be run now; looks only when something was committed."""
        position = self.engine.peek()
        if position >= 0 and position == self._looked_at:
            return
        if await self.engine.read(_ready_requests):
            self.replayer.wake()
        else:
            self._looked_at = position

    # -- the rounds ------------------------------------------------------------------------------------------------

    def loosen(self) -> None:
        """Where the app turned out to have no lifespan, its end will not be recorded: say so in the marker."""
        home = self._shared.home
        if home.ownership.held and not self._host.server.open:
            home.ownership.leave(self._host.clock.wall(), state="loose")

    def schedule_memory(self, now: float) -> dict[tuple[str, ...], float]:
        """When each kind of snapshot and the last rehearsal were done, in the monotonic time `now` belongs to."""
        wall = self._host.clock.wall()
        generation = self.generation
        memory: dict[tuple[str, ...], float] = {("rehearse",): now - (wall - self.backups.proofs().last_rehearsal)}
        for manifest in self.backups.catalog().manifests():
            if generation is not None and manifest.generation == generation.number:
                name = ("snapshot", *sorted(manifest.what))
                memory[name] = max(memory.get(name, -1e18), now - max(0.0, wall - manifest.taken))
        return memory

    def perform(self, task: tuple[str, ...]) -> None:
        """Do one task of the rounds. Blocks."""
        kind, what = task[0], task[1:]
        if kind == "ship":
            self.backups.ship()
        elif kind == "snapshot":
            with self._once("snapshot") as mine:
                if mine:
                    self.backups.take(what)
        elif kind == "rehearse":
            with self._once("rehearse") as mine:
                if mine and self.backups.catalog().ids():
                    self.backups.rehearse()
        elif kind == "scrub":
            self.backups.scrub(self.settings.scrub_pages)
        elif kind == "prune":
            with self._once("prune") as mine:
                if mine:
                    self.backups.prune()
        elif kind == "measure":
            self.measures.update()
        elif kind == "purge":
            self._purge()

    @contextlib.contextmanager
    def _once(self, name: str) -> Iterator[bool]:
        """One worker of the machine at a time: whether it is this one."""
        lock = FileLock(self.root / f"{name}.lock")
        try:
            yield lock.try_acquire()
        finally:
            lock.close()

    def _purge(self) -> None:
        before = int((self._host.clock.wall() - float(self.settings.keep_finished)) * 1000)
        queues = self.engine.read_here(
            lambda c: c.execute(
                "SELECT DISTINCT queue FROM task WHERE finished IS NOT NULL AND finished < ?", (before,)
            ).fetchall()
        )
        for (queue,) in queues:
            purge = partial(steps.purge, queue=queue, before=before, limit=_PURGED_AT_ONCE)
            self.engine.write(purge, grows=False, guarded=True).result(_PURGE_WAIT)

    def subscribe(self) -> list[Callable[[], None]]:
        """Follow what other plugins say; returns what ends it."""
        subscription = self._host.events.subscribe(BotChanged, self._bot_changed)
        return [subscription.cancel]

    async def _bot_changed(self, event: BotChanged) -> None:
        if event.state in ("ejected", "drained", "removed") and self.generation is not None:
            release = partial(steps.release_bot, bot=event.bot, blame=event.state == "ejected")
            await self.engine.write(release, grows=False, guarded=True)

    # -- telling ---------------------------------------------------------------------------------------------------

    def journal(self, entry: Mapping[str, Any]) -> None:
        """One line of `disaster-recovery.jsonl`."""
        self._host.journal("disaster-recovery").append(entry)

    def _tell(self, notes: list[tuple[Callable[..., Any], tuple[Any, ...]]], actor: Any) -> None:
        emit = self._host.events.emit
        for make, parts in notes:
            emit(make(actor, *parts))

    @property
    def host(self) -> Host:
        return self._host

    @property
    def verdict(self) -> Verdict | None:
        """How the last run ended."""
        return None if self._shared.opened is None else self._shared.opened.verdict


def _ready_requests(connection: sqlite3.Connection) -> bool:
    """Whether a stored request waits to be run (or a lease or delay may have run out)."""
    row = connection.execute(
        "SELECT 1 FROM task WHERE queue IN ('deia.inbox', 'deia.accepted') AND finished IS NULL LIMIT 1"
    ).fetchone()
    return row is not None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)
