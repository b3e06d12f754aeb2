"""A rollout as it is written down: the journal (the truth), the store (for the other workers), the page (at once).

What raises is on disk in the journal before it is anywhere else; what lowers is on the page before any disk is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from deia_hardening.journal import JournalError
from deia_hardening.plugin import Host, Problem
from deia_hardening.store import StaleRevision, StoreError, Write
from deia_migration import log
from deia_migration.log import Base
from deia_migration.rollout import Phase, Rollout, apply
from deia_migration.versions import APP_NAME

logger = logging.getLogger("deia_migration")

CURRENT = "rollout/current"
BASE = "rollout/base"
PAGE = "page/weights"
FIELD = "weights"
JOURNAL_WAIT = 10.0
"""Seconds that a raise waits for its record to be on disk; without it nothing is raised."""


class Book:
    """One home's rollout on disk. Background loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._revision = 0
        self._area = -1

    @property
    def log_path(self) -> Path:
        return self._host.home / "logs" / f"{log.NAME}.jsonl"

    def note(self, entry: Mapping[str, Any]) -> None:
        """Journal a record without waiting: a dead disk holds up no rescue."""
        self._host.journal(log.NAME).append(dict(entry))

    async def write(self, entry: Mapping[str, Any]) -> None:
        """Journal a record and wait until it is on disk. Raises Problem 503."""
        receipt = self._host.journal(log.NAME).append(dict(entry))
        try:
            await asyncio.wait_for(receipt.durable(), JOURNAL_WAIT)
        except (TimeoutError, JournalError) as error:
            raise Problem(
                503,
                f"the step could not be written to {log.NAME}.jsonl ({error or 'no answer from the disk'}); "
                "the weight was kept; make room or mend the disk and try again",
                retry_after=5,
            ) from error

    async def store(self, state: Rollout) -> None:
        """Show a state to every worker. Raises StaleRevision when another worker wrote first, StoreError."""
        writes = [
            Write(CURRENT, log.dump(state), if_revision=self._revision),
            Write(PAGE, msgspec.json.encode(page_field(state))),
        ]
        if state.phase in (Phase.PROMOTED, Phase.ROLLING_BACK):
            writes.append(Write(BASE, msgspec.json.encode(attrs.asdict(base_of(state)))))
        self._revision = (await self._host.store.apply(writes))[0]

    async def store_lowering(self, state: Rollout) -> str:
        """The same for a state that raises nothing: "" or what is wrong. A rollback wins over all but the end."""
        for _ in range(5):
            try:
                try:
                    await self.store(state)
                    return ""
                except StaleRevision:
                    found = await self.read()
                    if not state.latched or (found is not None and (found.id != state.id or found.phase.over)):
                        return "stale"
            except StoreError as error:
                logger.error("'%s' is in force here and in the log, but not in the store: %s", state.phase, error)
                return f"'{state.phase}' is in force here and in the log, but not in the store: {error}"
        return "stale"

    def lower(self, rollout: str) -> None:
        """Tell the other workers by one write to the page: nothing new to this rollout's candidate."""
        page = self._host.page
        now = page.state()
        field = {"rollout": rollout, "weight": 0.0, "latched": True}
        try:
            page.publish([(FIELD, msgspec.json.encode(field), now.stamps.get(FIELD, 0) + 1)], store=now.store)
        except (OSError, ValueError) as error:
            logger.error("the page can't be written (%s): other workers follow through the store", error)

    def changed(self) -> bool:
        """Whether somebody has written a state since the last one was read; a memory read."""
        return self._host.page.area("rollout") != self._area

    async def put_back(self, known: Rollout | None) -> None:
        """The store was begun anew: write the rollout of the log there, at its weight. Raises StoreError."""
        told = await self._host.blocking(log.recover, self.log_path)
        state = merged(told.of(known), known)
        self._revision = 0
        if state is not None:
            try:
                await self.store(state)
            except StaleRevision as stale:  # another worker was quicker
                self._revision = stale.found

    def unread(self) -> None:
        """What was read last was not taken up."""
        self._area = -1

    async def read(self) -> Rollout | None:
        """The state in the store. Raises StoreError; then it is still to be read."""
        area = self._host.page.area("rollout")
        entry = await self._host.store.get(CURRENT)
        self._area = area
        self._revision = entry.revision if entry is not None else 0
        if entry is None:
            return None
        return log.load(entry.value)

    async def recover(self) -> tuple[Rollout | None, Base]:
        """What a new process goes on from: the lower of log and store, and the version that serves."""
        if not await self._host.blocking(_anything, self._host.home):
            self._area = self._host.page.area("rollout")
            return None, Base()
        stored, base = None, None
        try:
            stored = await self.read()
            base = await self._host.store.get(BASE)
        except StoreError as error:
            logger.error("the store can't be read (%s): the rollout is rebuilt from its log", error)
        told = await self._host.blocking(log.recover, self.log_path)
        serving = told.base
        if base is not None and told.rollout is None:
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                serving = msgspec.json.decode(base.value, type=Base)
        state = merged(told.of(stored), stored)
        if state is not None:  # a rollback may be in the store alone for as long as the disk is slow
            serving = base_of(state)
        if state is not None and stored is not None and stored.id == state.id and stored.weight > state.weight:
            await self.store_lowering(state)  # the store was ahead of its log: every worker follows the log
        return state, serving


def merged(told: Rollout | None, stored: Rollout | None) -> Rollout | None:
    """The state to go on from: the log's; but a rollback or a lower weight that only the store knows holds."""
    if told is None:
        if stored is None or stored.phase.over:
            return stored
        # Its log is gone: nothing says how far it may go, so it goes back.
        return apply(stored, "rollback", {"reason": "the rollout's log is gone"}, stored.since)
    if stored is None or stored.id != told.id or told.phase.over:
        return told
    if stored.phase.over and stored.weight <= told.weight:
        return stored  # its end is written down without waiting for the disk: the store may know of it first
    if stored.latched and not told.latched:
        return stored
    return told if told.weight <= stored.weight or told.latched else stored


def base_of(state: Rollout) -> Base:
    """The version that serves when this rollout is over."""
    if state.phase in (Phase.PROMOTED, Phase.DONE):
        return Base(state.candidate, state.target, state.digest)
    return Base(state.stable, state.stable_target, state.stable_digest)


def page_field(state: Rollout) -> dict[str, Any]:
    """What the page says of a rollout."""
    return {
        "rollout": state.id,
        "weight": state.weight,
        "phase": str(state.phase),
        "latched": state.latched,
        "over": state.phase.over,
        "version": state.candidate,
    }


def running(state: Rollout | None, meant: str = "") -> Rollout:
    """The rollout under way. Raises Problem 409 where there is none, or not the one that is meant."""
    if state is None or state.phase.over:
        raise Problem(409, "no rollout is running; nothing was changed")
    if meant and meant != state.id:
        raise Problem(
            409,
            f"rollout {meant} is over; {state.id} of {state.candidate} by {state.by} runs now; nothing was changed",
            extensions={"rollout": state.id, "by": state.by},
        )
    return state


def refuse_same(serves: Base, wanted: Base) -> None:
    """Raise Problem 409 where the wanted version serves already, or another one by its name does."""
    name = serves.name or APP_NAME
    if wanted.digest and wanted.digest == serves.digest:
        raise Problem(409, f"exactly this code serves already (version {name}); nothing was changed")
    if wanted.name != name:
        return
    if wanted.target == serves.target and wanted.digest == serves.digest:
        raise Problem(409, f"{name} serves already; nothing was changed")
    raise Problem(
        409, f"the version that serves is called {name} too; give the new one a name of its own; nothing was changed"
    )


def busy(running: Rollout) -> Problem:
    """The refusal that a second operator gets: who is at what."""
    return Problem(
        409,
        f"{running.by or 'somebody'} is rolling out {running.candidate} "
        f"({running.phase}, weight {running.weight:.4g}); "
        "promote it, roll it back, or wait until it is over",
        extensions={"rollout": running.id, "by": running.by, "version": running.candidate, "phase": str(running.phase)},
    )


def _anything(home: Path) -> bool:
    return (home / "logs" / f"{log.NAME}.jsonl").exists() or (home / "state" / "store.db").exists()
