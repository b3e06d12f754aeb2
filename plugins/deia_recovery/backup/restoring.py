"""Restoring one home's state from its backups: which one, how far, and what is said about it."""

from __future__ import annotations

import attrs

from deia_recovery.backup.places import Places
from deia_recovery.backup.restore import Catalog, Fork, Plan, choose, fill, restore_files
from deia_recovery.backup.shipping import Shipped, read_shipped
from deia_recovery.engine.generation import Generation, build, newest_number, read_current, set_current
from deia_recovery.errors import BackupError, StartRefused, WrongKey
from deia_recovery.events import RestoreDone
from deia_recovery.opening import Found


class Restoring(Places):
    """What a start does when the live state does not verify, and what `recovery restore` does."""

    def restore_at_start(self, found: Found) -> Generation | None:
        """The opener's way: the newest state that can be proven, or None where there never was a backup."""
        shipped = read_shipped(found.root)
        catalogs = self._catalogs(shipped.store if shipped is not None else None)
        if not catalogs:
            return None
        errors: list[str] = []
        for catalog in catalogs:
            if not catalog.ids():
                continue
            floor = None
            if shipped is not None and shipped.store == catalog.store:
                floor = _known(shipped, catalog)
            try:
                plan = choose(catalog, floor=floor)
            except (BackupError, WrongKey) as error:
                errors.append(str(error))
                continue
            return self._restore(found, catalog, plan, take_over=True)
        if not errors:
            return None
        if self.settings.start_empty and found.damaged is None:
            self._recovery.journal({"kind": "recovery.started-empty", "backups": errors})
            return None
        raise StartRefused(
            f"{found.reason}, and the backups can't be used: {'; '.join(errors)}. Nothing was touched. Give the right "
            "key or folder, or set recovery.start_empty to begin with an empty state"
        )

    def _restore(
        self, found: Found, catalog: Catalog, plan: Plan, until: float | None = None, *, take_over: bool
    ) -> Generation:
        manifest = plan.snapshot
        self._claim(manifest.store, take_over=take_over, required=catalog.vault.where)
        local = Catalog(self.vault(manifest.store), catalog.keys, manifest.store)
        number = max(newest_number(found.root), catalog.newest_generation(), local.newest_generation()) + 1
        origin = f"snapshot {manifest.id} to position {plan.position}"
        generation = build(found.root, number, manifest.store, origin, lambda c: fill(c, catalog, plan, until))
        generation = attrs.evolve(
            generation, parent=plan.generation, position=plan.position, since=self._recovery.host.clock.wall()
        )
        set_current(found.root, generation)
        self.note_fork()
        files = restore_files(catalog, manifest, aside=None)
        missing = self._missing(found, plan)
        self._recovery.journal(
            {
                "kind": "recovery.restored",
                "reason": found.reason,
                "snapshot": manifest.id,
                "from": catalog.vault.where,
                "position": plan.position,
                "at": plan.at,
                "generation": number,
                "damaged_kept_in": str(found.damaged) if found.damaged else "",
                "missing": missing,
                "skipped": list(plan.skipped),
                "files": files,
            }
        )
        self._recovery.host.events.emit(
            RestoreDone(snapshot=manifest.id, position=plan.position, missing=missing, reason=found.reason)
        )
        return generation

    def note_fork(self) -> None:
        """See to it that the backups know from where the generation in force leads on.

        Noted only once it is in force: one whose restore was killed before must not end the path of its parent. Where
        it was killed right after, the next start and the next shipping make up for it.
        """
        current = read_current(self._recovery.root)
        if current is None or not current.parent:
            return
        catalog = Catalog(self.vault(current.store), self.keys(make=False), current.store)
        if not catalog.knows_fork(current.number):
            catalog.write_fork(Fork(current.store, current.number, current.parent, current.position, current.since))

    def _claim(self, store: str, *, take_over: bool, required: str) -> None:
        """Own the remote backups of a state that is about to be restored; a remote store that is away is only said."""
        try:
            mirror = self.mirror()
            if mirror is not None:
                mirror.claim(store, take_over=take_over)
        except BackupError:
            raise
        except Exception as error:
            self._failed("remote", f"{error} (restoring from {required})")

    def _missing(self, found: Found, plan: Plan) -> str:
        seconds = max(0.0, self._recovery.host.clock.wall() - plan.at)
        if found.live_position is not None and found.live_position > plan.position:
            return (
                f"{found.live_position - plan.position} changes (positions {plan.position + 1} to "
                f"{found.live_position}) that were committed and not yet shipped"
            )
        if found.live_position is not None:
            return "nothing that the damaged state still shows"
        return f"what was committed after position {plan.position}, that is in the last {seconds:.0f} s, if anything"


def _known(shipped: Shipped, catalog: Catalog) -> int:
    """The position up to which the backups are known to reach: less, where its generation was left for an earlier."""
    left = [fork.position for fork in catalog.forks().values() if fork.parent == shipped.generation]
    return min([shipped.position, *left])
