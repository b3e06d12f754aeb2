"""The backups of one home: when and how they are taken, shipped, proven, pruned and restored.

Blocking methods run on core-owned threads; only `take` starts a process. Every outcome is a line of the journal and
an event. Silence is never read as health: `status` says how old each proof is.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from deia_recovery.backup.keys import KeyRing, load_key
from deia_recovery.backup.manifest import Manifest, manifest_name
from deia_recovery.backup.mirror import Mirror
from deia_recovery.backup.prune import prune
from deia_recovery.backup.restore import Catalog, Fork, Plan, choose, fill, recomputed_names, restore_files
from deia_recovery.backup.retention import Rules
from deia_recovery.backup.shipping import Shipper, read_shipped
from deia_recovery.backup.snapshot import FileJob, Job, Result
from deia_recovery.backup.vault import FolderVault, Vault
from deia_recovery.engine.files import write_whole
from deia_recovery.engine.generation import Generation, build, newest_number, set_current
from deia_recovery.errors import BackupError, StartRefused, StateError, StateUnavailable, WrongKey
from deia_recovery.events import ProofDone, RestoreDone, SnapshotTaken
from deia_recovery.opening import Found

if TYPE_CHECKING:
    from deia_recovery.service import DisasterRecovery


@attrs.frozen
class Proofs:
    """What was proven when (Unix seconds): snapshots read through, the last rehearsal, the last scrub's findings."""

    verified: dict[str, float] = attrs.field(factory=dict)
    rehearsed: dict[str, float] = attrs.field(factory=dict)
    scrubbed: float = 0.0
    failed: dict[str, str] = attrs.field(factory=dict)

    @property
    def last_rehearsal(self) -> float:
        return max(self.rehearsed.values(), default=0.0)


class Backups:
    """Everything about backups that one home does."""

    def __init__(self, recovery: DisasterRecovery) -> None:
        self._recovery = recovery
        self._lock = threading.RLock()
        self._keys: KeyRing | None = None
        self._shipper: Shipper | None = None
        self._mirror: Mirror | None = None
        self._scrub_at = 1
        self.problems: dict[str, str] = {}
        """What goes wrong at the moment, by what was tried."""
        self.known_proofs = Proofs()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.last_taken: dict[tuple[str, ...], float] = {}

    # -- where and with what ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        return self._recovery.settings

    @property
    def folder(self) -> Path:
        configured = self.settings.backups
        return Path(configured) if configured else self._recovery.host.home / "backups"

    def keys(self, *, make: bool = True) -> KeyRing:
        """The key ring. Raises StateError where there is no key and none may be made."""
        with self._lock:
            if self._keys is None:
                encryption = self.settings.encryption
                master = load_key(self._recovery.host.home / "keys", encryption.key, make=make)
                if master is None:
                    raise StateError(
                        f"there is no recovery key in {self._recovery.host.home / 'keys'} and none in the settings: "
                        "backups can't be read without the key they were made with; nothing was touched"
                    )
                self._keys = KeyRing(master, encrypt=encryption.on)
            return self._keys

    def vault(self, store: str) -> FolderVault:
        return FolderVault(self.folder / store)

    def catalog(self) -> Catalog:
        """The local backups of the state in force."""
        generation = self._generation()
        return Catalog(self.vault(generation.store), self.keys(), generation.store)

    def _generation(self) -> Generation:
        generation = self._recovery.generation
        if generation is None:
            self._recovery.engine.ensure()
            generation = self._recovery.generation
        if generation is None:
            raise StateError("there is no state yet: nothing was written so far")
        return generation

    def mirror(self) -> Mirror | None:
        """The copy off the machine, if one is configured. Raises BackupError for one that can't be used."""
        if not self.settings.remote.url:
            return None
        with self._lock:
            if self._mirror is None:
                self._mirror = Mirror(self.settings.remote, self._recovery.root)
            return self._mirror

    def stores(self) -> list[str]:
        """The store ids that have backups in the local folder."""
        if not self.folder.is_dir():
            return []
        return sorted(
            p.name for p in self.folder.iterdir() if (p / "snapshots").is_dir() and any((p / "snapshots").iterdir())
        )

    def any(self) -> bool:
        """Whether there are backups, here or (where configured) off the machine."""
        return bool(self.stores()) or bool(self.settings.remote.url)

    # -- taking ------------------------------------------------------------------------------------------------

    def take(self, what: tuple[str, ...] = ("all",)) -> Result:
        """Take a snapshot now. Blocks while its process works. Raises BackupError; then there is no snapshot."""
        generation = self._generation()
        self._recovery.keep_objects()
        if "all" in what or set(what) & {"registry", "assignments", "tasks", "objects"}:
            self.ship(wait=True)
        job = Job(
            database=str(self._recovery.engine.database),
            vault=str(self.vault(generation.store).folder),
            store=generation.store,
            generation=generation.number,
            what=tuple(sorted(set(what))),
            chunk=int(self.settings.chunk),
            key=self.keys().master.hex(),
            encrypt=self.settings.encryption.on,
            now=self._recovery.host.clock.wall(),
            files=tuple(FileJob(one.name, one.path, one.kind) for one in self.settings.protect),
        )
        result = self._run(job)
        label = "snapshot " + ",".join(job.what)
        if result.error:
            self._failed(label, result.error)
            self._recovery.host.events.emit(SnapshotTaken(outcome="failure", what=job.what, reason=result.error))
            raise BackupError(f"the snapshot failed: {result.error}; earlier ones are as they were")
        self._succeeded(label)
        now = self._recovery.host.clock.wall()
        self.last_taken[job.what] = now
        self._prove(verified={result.id: now})
        entry = {"kind": "recovery.snapshot", "what": list(job.what), **attrs.asdict(result)}
        self._recovery.journal(entry)
        self._recovery.host.events.emit(
            SnapshotTaken(snapshot=result.id, what=job.what, position=result.position, bytes_new=result.bytes_new)
        )
        self._mirrored()
        return result

    def _run(self, job: Job) -> Result:
        if self._stopping:
            return Result(error="the service stops")
        process = subprocess.Popen(
            [sys.executable, "-m", "deia_recovery.backup.snapshot"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._process = process
        try:
            answer, errors = process.communicate(msgspec.json.encode(job))
        finally:
            self._process = None
        try:
            return msgspec.json.decode(answer.splitlines()[-1], type=Result)
        except (IndexError, msgspec.DecodeError, ValueError):
            tail = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            if self.stopping():
                return Result(error="the service stopped while it was taken")
            return Result(error=f"its process ended with {process.returncode} {' '.join(tail)}")

    def stopping(self) -> bool:
        """Whether the service is going down."""
        return self._stopping

    def interrupt(self) -> None:
        """The service stops: end a snapshot that is just being taken; it leaves no manifest, so nothing half."""
        self._stopping = True
        process = self._process
        if process is not None:
            process.terminate()

    # -- shipping ----------------------------------------------------------------------------------------------

    def ship(self, *, wait: bool = False, trim: bool = True) -> None:
        """Ship what was committed. Failures are kept in `problems` and tried again at the next call."""
        generation = self._generation()
        with self._lock:
            shipper = self._shipper
            if shipper is None or shipper.engine_generation != generation.number:
                vault = self.vault(generation.store)
                shipper = self._shipper = Shipper(
                    self._recovery.engine, self._recovery.root, generation.store, vault, self.keys()
                )
        try:
            before = shipper.position
            last = shipper.run(wait=wait)
            if last is not None and last.position != before:
                if trim:
                    shipper.trim()
                self._mirrored(segments_only=True)
        except (OSError, StateError) as error:
            self._failed("shipping", str(error))
        else:
            self._succeeded("shipping")

    def confirm(self, position: int) -> None:
        """Synchronous shipping: return when `position` is in the remote store. On the writer's thread.

        Raises StateUnavailable when that can't be had; the write is on this machine's disk then, unconfirmed.
        """
        self.ship(wait=True, trim=False)
        why = self.problems.get("shipping") or self.problems.get("remote")
        if why:
            raise StateUnavailable(
                f"the write is on this machine's disk, but recovery.remote.synchronous is set and {why}"
            )

    def _mirrored(self, *, segments_only: bool = False) -> None:
        if not self.settings.remote.url:
            return
        try:
            mirror = self.mirror()
            if mirror is not None:
                mirror.copy(self.vault(self._generation().store), self._generation().store, segments_only=segments_only)
        except Exception as error:
            self._failed("remote", str(error))
        else:
            self._succeeded("remote")

    def _failed(self, what: str, why: str) -> None:
        if self.problems.get(what) != why:
            self.problems[what] = why
            self._recovery.journal({"kind": "recovery.problem", "what": what, "detail": why})
            self._recovery.host.touched()

    def _succeeded(self, what: str) -> None:
        if self.problems.pop(what, None) is not None:
            self._recovery.journal({"kind": "recovery.problem-over", "what": what})
            self._recovery.host.touched()

    # -- proof -------------------------------------------------------------------------------------------------

    def proofs(self) -> Proofs:
        """What was proven when, by any worker. Blocks; `known_proofs` is what this process last saw."""
        self.known_proofs = self._read_proofs()
        return self.known_proofs

    def _read_proofs(self) -> Proofs:
        try:
            return msgspec.json.decode((self._recovery.root / "proofs.json").read_bytes(), type=Proofs)
        except (FileNotFoundError, msgspec.DecodeError, ValueError):
            return Proofs()

    def _prove(self, **news: Any) -> None:
        with self._lock:
            old = self.proofs()
            merged: dict[str, Any] = {}
            for name, value in news.items():
                merged[name] = {**getattr(old, name), **value} if isinstance(value, dict) else value
            proofs = attrs.evolve(old, **merged)
            for snapshot in news.get("verified", ()):
                proofs.failed.pop(snapshot, None)
            write_whole(self._recovery.root / "proofs.json", msgspec.json.encode(proofs))
            self.known_proofs = proofs

    def verify(self, snapshot: str | None = None) -> dict[str, list[str]]:
        """Open every chunk of a snapshot (or of all). Returns problems by snapshot; none: it can be restored."""
        catalog = self.catalog()
        manifests = [catalog.manifest(snapshot)] if snapshot else catalog.manifests()
        found = {manifest.id: catalog.check(manifest) for manifest in manifests}
        for text in catalog.refused:
            found.setdefault("refused", []).append(text)
        now = self._recovery.host.clock.wall()
        self._prove(
            verified={one: now for one, problems in found.items() if not problems},
            failed={one: problems[0] for one, problems in found.items() if problems},
        )
        bad = {one: problems for one, problems in found.items() if problems}
        self._recovery.journal({"kind": "recovery.verified", "snapshots": len(found), "problems": bad})
        if bad:
            reason = next(iter(bad.values()))[0]
            self._failed("verify", reason)
        elif snapshot is None:
            self._succeeded("verify")
        self._recovery.host.events.emit(ProofDone(what="verify", outcome="failure" if bad else "success"))
        return found

    def rehearse(self, snapshot: str | None = None) -> dict[str, Any]:
        """Restore into a scratch place and compare rows and root hash with the manifest. Raises BackupError."""
        catalog = self.catalog()
        plan = choose(catalog, snapshot=snapshot)
        manifest = plan.snapshot
        scratch = self._recovery.root / "rehearsal"
        if scratch.exists():
            shutil.rmtree(scratch)
        try:
            rows = self._rehearsed(catalog, manifest, scratch)
            self._rehearse_to_the_end(catalog, plan, scratch)
        except (BackupError, sqlite3.Error, OSError, ValueError) as error:
            self._prove(failed={manifest.id: str(error)})
            self._failed("rehearsal", str(error))
            self._recovery.host.events.emit(ProofDone(what="rehearsal", outcome="failure", reason=str(error)))
            raise BackupError(f"the rehearsal of snapshot {manifest.id} failed: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        now = self._recovery.host.clock.wall()
        self._prove(rehearsed={manifest.id: now}, verified={manifest.id: now})
        self._succeeded("rehearsal")
        report = {
            "snapshot": manifest.id,
            "position": plan.position,
            "rows": rows,
            "root": manifest.root,
            "skipped": list(plan.skipped),
        }
        self._recovery.journal({"kind": "recovery.rehearsed", **report})
        self._recovery.host.events.emit(ProofDone(what="rehearsal"))
        return report

    def _rehearsed(self, catalog: Catalog, manifest: Manifest, scratch: Path) -> dict[str, int]:
        def load(connection: sqlite3.Connection) -> None:
            from deia_recovery.backup.restore import load_tables

            load_tables(connection, catalog, manifest)
            names = recomputed_names(connection, manifest, catalog.keys)
            for table, part in manifest.tables.items():
                if names[table] != [ref.name for ref in part.chunks]:
                    raise BackupError(f"table {table} does not come back as it was written")

        build(scratch, 1, manifest.store, f"rehearsal of {manifest.id}", load)
        return manifest.rows

    def _rehearse_to_the_end(self, catalog: Catalog, plan: Plan, scratch: Path) -> None:
        if plan.commits and plan.snapshot.whole:
            build(scratch, 2, plan.snapshot.store, "rehearsal", lambda connection: fill(connection, catalog, plan))

    def scrub(self, pages: int) -> list[str]:
        """Check the next stretch of the live database. Returns what does not verify."""
        self._recovery.engine.ensure()
        self._scrub_at, problems = self._recovery.engine.checkpoints.scrub(self._scrub_at, pages)
        found = [f"{one.file} page {one.page}: {one.detail}" for one in problems]
        if self._scrub_at == 1:
            self._prove(scrubbed=self._recovery.host.clock.wall())
        if found:
            self._failed("scrub", found[0])
            self._recovery.host.events.emit(ProofDone(what="scrub", outcome="failure", reason=found[0]))
        return found

    # -- keeping -----------------------------------------------------------------------------------------------

    def prune(self) -> dict[str, int]:
        """Remove what retention lets go, and chunks that nothing has referred to for the grace period."""
        rules = self.settings.retention
        found = prune(
            self.catalog(),
            Rules(rules.last, rules.hourly, rules.daily, rules.weekly, rules.monthly),
            proven=self.proofs(),
            grace=float(rules.grace),
            now=self._recovery.host.clock.wall(),
        )
        if any(found.values()):
            self._recovery.journal({"kind": "recovery.pruned", **found})
        return found

    # -- restoring ---------------------------------------------------------------------------------------------

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
                floor = shipped.position
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

    def _catalogs(self, store: str | None) -> list[Catalog]:
        local = self.stores()
        if store is not None:
            local = [one for one in local if one == store]
        if len(local) > 1:
            raise StartRefused(
                f"there is no state, and {self.folder} holds the backups of several ({', '.join(local)}): move away "
                "all but the one that is to be restored"
            )
        catalogs = [Catalog(self.vault(one), self.keys(make=False), one) for one in local]
        mirror = self.mirror()
        if mirror is not None:
            remote = [one for one in mirror.stores() if store is None or one == store]
            if len(remote) > 1 and not local:
                raise StartRefused(
                    f"there is no state, and {self.settings.remote.url} holds the backups of several "
                    f"({', '.join(remote)}): give each home a prefix of its own"
                )
            catalogs += [Catalog(mirror.vault(one), self.keys(make=False), one) for one in remote]
        return catalogs

    def _restore(
        self, found: Found, catalog: Catalog, plan: Plan, until: float | None = None, *, take_over: bool
    ) -> Generation:
        manifest = plan.snapshot
        self._claim(manifest.store, take_over=take_over, required=catalog.vault.where)
        number = max(newest_number(found.root), manifest.generation) + 1
        origin = f"snapshot {manifest.id} to position {plan.position}"
        generation = build(found.root, number, manifest.store, origin, lambda c: fill(c, catalog, plan, until))
        Catalog(self.vault(manifest.store), catalog.keys, manifest.store).write_fork(
            Fork(manifest.store, number, manifest.generation, plan.position)
        )
        set_current(found.root, generation)
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

    def restore_now(
        self, *, snapshot: str | None = None, until: float | None = None, dry_run: bool = False, take_over: bool = False
    ) -> dict[str, Any]:
        """Restore while serving: writers are refused and drained, then the restored generation is put in force."""
        recovery = self._recovery
        self._generation()
        self.ship(wait=True)
        catalog = self.catalog()
        plan = choose(catalog, snapshot=snapshot, until=until)
        if not plan.snapshot.whole:
            raise BackupError(
                f"snapshot {plan.snapshot.id} holds only {', '.join(plan.snapshot.what)}: choose a whole one"
            )
        report = {
            "snapshot": plan.snapshot.id,
            "position": plan.position,
            "at": plan.at,
            "rows": plan.snapshot.rows,
            "skipped": list(plan.skipped),
            "dry_run": dry_run,
        }
        if dry_run:
            return report
        recovery.state.closed_for = "a restore is going on: nothing was accepted; retry in some seconds"
        try:
            with recovery.engine.turn():
                self.ship(wait=True, trim=False)
                live = recovery.engine.peek()
                found = Found(recovery.root, "asked for by an operator", recovery.engine.folder, live)
                generation = self._restore(found, catalog, plan, until, take_over=take_over)
                recovery.engine.page.position = 1 << 62  # every worker's memory of the old generation ends here
            recovery.adopt()
        finally:
            recovery.state.closed_for = ""
        self.take(("all",))
        return {**report, "generation": generation.number}

    # -- telling -----------------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Every snapshot that authenticates, newest first, with when it was proven; and those that do not."""
        catalog = self.catalog()
        proofs = self.proofs()
        found: list[dict[str, Any]] = [
            {
                "id": one.id,
                "taken": one.taken,
                "what": list(one.what),
                "generation": one.generation,
                "position": one.position,
                "rows": sum(one.rows.values()),
                "bytes": sum(ref.stored for ref in one.chunks()),
                "verified": proofs.verified.get(one.id, 0.0),
                "rehearsed": proofs.rehearsed.get(one.id, 0.0),
                "problem": proofs.failed.get(one.id, ""),
            }
            for one in catalog.manifests()
        ]
        found.sort(key=lambda one: one["taken"], reverse=True)
        found.extend({"id": "", "problem": text} for text in catalog.refused)
        return found


__all__ = ["Backups", "Proofs", "Vault", "manifest_name"]
