"""Opening the state: check what is there before anybody uses it, restore only what does not verify.

Live state that verifies always wins. Nothing damaged is changed or deleted: a restore builds the next generation
beside it and switches. Where backups exist and the state is gone, an empty state is never begun by itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from deia_recovery.backup.shipping import read_shipped
from deia_recovery.crash import CLEAN, CRASH, REBOOT, UNKNOWN, Ownership, Verdict, writable
from deia_recovery.engine.connections import apart
from deia_recovery.engine.engine import DATABASE
from deia_recovery.engine.files import FileLock, make_folder
from deia_recovery.engine.generation import Generation, create_first, newest_number, read_current, read_meta
from deia_recovery.engine.pages import LiveVerdict, PageProblem, PageSums, verify_live
from deia_recovery.errors import StartRefused, StateDamaged, StateUnavailable


@attrs.frozen
class Found:
    """What is to be restored, and why: given to the one who restores."""

    root: Path
    reason: str
    damaged: Path | None
    live_position: int | None


Restorer = Callable[[Found], Generation | None]
"""Builds and names the next generation from backups; None when there are no backups at all. Raises StartRefused."""


@attrs.frozen
class Opened:
    """How the state was found."""

    generation: Generation
    verdict: Verdict
    live: LiveVerdict | None = None
    restored: bool = False
    created: bool = False
    notes: tuple[str, ...] = ()


class StateHome:
    """The folder `state/recovery` of a home: its generations and who uses them. Blocking."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ownership = Ownership(root)
        self._use = FileLock(root / "use.lock")

    def exists(self) -> bool:
        """Whether there is, or was, a state here."""
        return (self.root / "current").exists() or newest_number(self.root) > 0

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep every process from opening the state; gives False, and keeps nobody away, where one has it open."""
        make_folder(self.root)
        alone = self._use.try_acquire()
        try:
            yield alone
        finally:
            self._use.close()

    def open(self, now: float, *, lifespan: bool, restore: Restorer, automatic: bool = True) -> Opened:
        """Find, check and if need be restore or create the state; afterwards the engine may open it.

        With `automatic` False a state that does not verify raises StartRefused. Raises StateUnavailable where the
        folder can't be written, StateError for what a newer release wrote.
        """
        if not writable(self.root):
            raise StateUnavailable(
                f"{self.root} can't be written: durable state needs its folder; nothing was touched: fix its owner or "
                "mode, or set 'home' to a folder that can be written",
                retryable=False,
            )
        make_folder(self.root)
        verdict = self.ownership.enter(now, lifespan=lifespan)
        try:
            if self._use.try_acquire():
                try:
                    return self._open_alone(verdict, restore, automatic)
                finally:
                    self._use.close()
            self._use.acquire(shared=True)
            self._use.close()
            generation = read_current(self.root)
            if generation is None:
                raise StartRefused(f"{self.root} is used by another process, but names no generation")
            read_meta(generation.folder / DATABASE)
            return Opened(generation, verdict)
        except BaseException:
            self.ownership.leave(now, state="loose")
            raise

    def _open_alone(self, verdict: Verdict, restore: Restorer, automatic: bool) -> Opened:
        reason, live, position = "", None, None
        try:
            generation = read_current(self.root)
        except StateDamaged as error:
            generation, reason = None, str(error)
        if generation is not None:
            database = generation.folder / DATABASE
            live = verified(self.root, generation)
            notes: tuple[str, ...] = ()
            if live.unproven and _structure_holds(database):
                _take_sums(database)
                notes = (
                    "the digests of the database could not be read; its structure is sound, and they were taken anew",
                )
                live = attrs.evolve(live, ok=True, unproven=True)
            if live.ok:
                read_meta(database)
                return Opened(generation, verdict, live, notes=notes)
            first = live.problems[0]
            reason = f"{first} ({len(live.problems)} such findings)"
            position = _readable_position(database)
        elif newest_number(self.root) and not reason:
            reason = f"{self.root / 'current'} is missing, though generations of the state are there"
        return self._without_live(verdict, restore, automatic, generation, reason, live, position)

    def _without_live(
        self,
        verdict: Verdict,
        restore: Restorer,
        automatic: bool,
        generation: Generation | None,
        reason: str,
        live: LiveVerdict | None,
        position: int | None,
    ) -> Opened:
        if reason and not automatic:
            raise StartRefused(
                f"the state does not verify: {reason}; nothing was changed. 'restore: never' is set: run "
                "'deia-hardening recovery restore', or set it to 'auto'"
            )
        found = Found(
            self.root, reason or "there is no state", None if generation is None else generation.folder, position
        )
        restored = restore(found)
        if restored is not None:
            return Opened(restored, verdict, live, restored=True)
        if reason:
            raise StartRefused(
                f"the state does not verify: {reason}; there is no backup to restore it from. Nothing was changed or "
                f"deleted. To go on with an empty state, move {self.root} away"
            )
        return Opened(create_first(self.root), verdict, created=True)


def verified(root: Path, generation: Generation) -> LiveVerdict:
    """Whether a generation's live files verify, and hold what is known to have been committed. Nobody may have it open.

    A log that was cut or lost leaves an older state that is sound in itself: what was shipped tells.
    """
    database = generation.folder / DATABASE
    live = verify_live(database)
    shipped = read_shipped(root)
    if not live.ok or shipped is None or (shipped.store, shipped.generation) != (generation.store, generation.number):
        return live
    position = _readable_position(database)
    if position is None or position >= shipped.position:
        return live
    problem = PageProblem(
        f"{DATABASE}-wal",
        0,
        f"the state ends at position {position}, but changes up to {shipped.position} were shipped",
    )
    return attrs.evolve(live, ok=False, problems=(problem,))


def in_doubt(verdict: Verdict) -> bool:
    """Whether work that was in flight at the end of the last run is surely in nobody's hands now."""
    return verdict.kind in (CRASH, REBOOT)


def _structure_holds(database: Path) -> bool:
    try:
        with apart(database) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
    except (sqlite3.Error, OSError):
        return False


def _take_sums(database: Path) -> None:
    fd = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    try:
        PageSums(database).take(fd)
    finally:
        os.close(fd)


def _readable_position(database: Path) -> int | None:
    try:
        with apart(database) as connection:
            row = connection.execute("SELECT max(position) FROM changes").fetchone()
            return row[0] or 0
    except (sqlite3.Error, OSError):
        return None


__all__ = ["CLEAN", "UNKNOWN", "Found", "Opened", "Restorer", "StateHome", "in_doubt"]
