"""What an operator asks for: restore all or some parts, while serving or with no service up."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from deia_recovery.backup.restore import Plan, choose
from deia_recovery.backup.restoring import Restoring
from deia_recovery.backup.selection import bring_back, fill_some, tables_of
from deia_recovery.engine.connections import apart
from deia_recovery.engine.generation import Generation, build, read_current
from deia_recovery.engine.turns import DATABASE
from deia_recovery.errors import BackupError, StateDamaged, WrongKey
from deia_recovery.opening import Found, StateHome, verified

_LONG = 600.0
"""Seconds that one commit of restored rows may take: a million of them take some ten."""


@attrs.frozen
class Asked:
    """Which snapshot (None: the newest that verifies), how far (Unix seconds; None: all that was shipped), and how."""

    snapshot: str | None = None
    until: float | None = None
    what: tuple[str, ...] = ()
    dry_run: bool = False
    take_over: bool = False


class Reinstating(Restoring):
    """`recovery restore`. Blocking."""

    @abstractmethod
    def ship(self, *, wait: bool = False, trim: bool = True) -> None: ...

    @abstractmethod
    def take(self, what: tuple[str, ...] = ("all",)) -> Any: ...

    def restore_now(self, asked: Asked) -> dict[str, Any]:
        """Restore while serving: writers are refused and drained, then the restored generation is put in force.

        With `what` only those parts are brought back, into the present state. Raises BackupError, WrongKey.
        """
        if asked.what and "all" not in asked.what:
            return self._restore_parts(asked)
        recovery = self._recovery
        self._generation()
        self.ship(wait=True)
        catalog = self.catalog()
        plan = choose(catalog, snapshot=asked.snapshot, until=asked.until)
        if not plan.snapshot.whole:
            raise BackupError(
                f"snapshot {plan.snapshot.id} holds only {', '.join(plan.snapshot.what)}: choose a whole one, or name "
                "the parts to bring back"
            )
        report = _report(plan, asked)
        if asked.dry_run:
            return report
        recovery.state.closed_for = "a restore is going on: nothing was accepted; retry in some seconds"
        try:
            with recovery.engine.turn():
                self.ship(wait=True, trim=False)
                live = recovery.engine.peek()
                found = Found(recovery.root, "asked for by an operator", recovery.engine.folder, live)
                generation = self._restore(found, catalog, plan, asked.until, take_over=asked.take_over)
                recovery.engine.page.position = 1 << 62  # every worker's memory of the old generation ends here
            recovery.adopt()
        finally:
            recovery.state.closed_for = ""
        self.take(("all",))
        return {**report, "generation": generation.number}

    def restore_offline(self, asked: Asked) -> dict[str, Any]:
        """The same with no service up: also where the state is gone, or damaged and not to be restored by itself."""
        home = StateHome(self._recovery.root)
        with home.alone() as alone:
            if alone and not _verifies(home.root):
                return self._restore_lost(home.root, asked)
        return self.restore_now(asked)

    def _restore_lost(self, root: Path, asked: Asked) -> dict[str, Any]:
        if asked.what and "all" not in asked.what:
            raise BackupError("there is no state that verifies to bring parts back into: restore all of it first")
        try:
            present = read_current(root)
        except StateDamaged:
            present = None
        refused: list[str] = []
        for catalog in self._catalogs(self.known_store()):
            try:
                plan = choose(catalog, snapshot=asked.snapshot, until=asked.until)
            except (BackupError, WrongKey) as error:
                refused.append(str(error))
                continue
            report = _report(plan, asked)
            if asked.dry_run:
                return report
            found = Found(root, "asked for by an operator", None if present is None else present.folder, None)
            generation: Generation = self._restore(found, catalog, plan, asked.until, take_over=True)
            return {**report, "generation": generation.number}
        raise BackupError("; ".join(refused) or f"there are no backups in {self.folder}")

    def _restore_parts(self, asked: Asked) -> dict[str, Any]:
        tables = tables_of(asked.what)
        recovery = self._recovery
        generation = self._generation()
        self.ship(wait=True)
        catalog = self.catalog()
        plan = choose(catalog, snapshot=asked.snapshot, until=asked.until, tables=[table.name for table in tables])
        missing = [table.name for table in tables if table.name not in plan.snapshot.tables]
        if missing:
            raise BackupError(f"snapshot {plan.snapshot.id} does not hold {', '.join(missing)}")
        report = {**_report(plan, asked), "what": sorted(asked.what)}
        if asked.dry_run:
            return report
        with self.scratch("selection") as scratch:
            fill = partial(fill_some, catalog=catalog, plan=plan, tables=tables, until=asked.until)
            folder = build(scratch, 1, generation.store, "selection", fill).folder
            with apart(folder / DATABASE) as source:
                source.execute("BEGIN")
                write = partial(bring_back, source=source, tables=tables)
                changed = recovery.engine.write(write, guarded=True).result(_LONG)
        recovery.journal({"kind": "recovery.brought-back", **report, "changed": changed})
        return {**report, "changed": changed}


def _report(plan: Plan, asked: Asked) -> dict[str, Any]:
    return {
        "snapshot": plan.snapshot.id,
        "position": plan.position,
        "at": plan.at,
        "rows": plan.snapshot.rows,
        "skipped": list(plan.skipped),
        "dry_run": asked.dry_run,
    }


def _verifies(root: Path) -> bool:
    try:
        generation = read_current(root)
    except StateDamaged:
        return False
    return generation is not None and verified(root, generation).ok
