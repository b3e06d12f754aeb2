"""The backups of one home: when and how they are taken, shipped, proven, pruned and restored.

Blocking methods run on core-owned threads; only `take` starts a process. Every outcome is a line of the journal and
an event. Silence is never read as health: `status` says how old each proof is.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from deia_recovery.backup.compaction import compact
from deia_recovery.backup.manifest import Manifest, manifest_name
from deia_recovery.backup.prune import prune
from deia_recovery.backup.reinstating import Reinstating
from deia_recovery.backup.restore import Catalog, Plan, choose, fill, recomputed_names
from deia_recovery.backup.retention import Rules
from deia_recovery.backup.shipping import Shipper
from deia_recovery.backup.snapshot import FileJob, Job, Result
from deia_recovery.backup.vault import Vault
from deia_recovery.engine.files import make_folder, write_whole
from deia_recovery.engine.generation import Generation, build, read_current
from deia_recovery.errors import BackupError, StateError, StateUnavailable
from deia_recovery.events import ProofDone, SnapshotTaken
from deia_recovery.objects import keep_objects
from deia_recovery.opening import StateHome, verified

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


class Backups(Reinstating):
    """Everything about backups that one home does."""

    def __init__(self, recovery: DisasterRecovery) -> None:
        super().__init__(recovery)
        self._shipper: Shipper | None = None
        self._scrub_at = 1
        self.known_proofs = Proofs()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.last_taken: dict[tuple[str, ...], float] = {}

    # -- taking ------------------------------------------------------------------------------------------------

    def take(self, what: tuple[str, ...] = ("all",)) -> Result:
        """Take a snapshot now. Blocks while its process works. Raises BackupError; then there is no snapshot."""
        generation = self._generation()
        keep_objects(self._recovery)
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
        if result.missing:
            self._failed("protect", f"{'; '.join(result.missing)}: the snapshot holds all the rest")
        elif job.files and {"all", "files"} & set(job.what):
            self._succeeded("protect")
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
            [sys.executable, "-m", "deia_recovery.backup"],
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

    def ship(self, *, wait: bool = False, trim: bool = True, mirror: bool = True) -> None:
        """Ship what was committed, also off the machine where that is configured and `mirror`.

        Failures are kept in `problems` and tried again at the next call.
        """
        generation = self._generation()
        try:
            shipper = self._shipper_of(generation)
            before = shipper.position
            last = shipper.run(wait=wait)
            if last is not None and last.position != before:
                if trim:
                    shipper.trim()
                if mirror:
                    self._mirrored(segments_only=True)
        except (OSError, StateError) as error:
            self._failed("shipping", str(error))
        else:
            self._succeeded("shipping")

    def _shipper_of(self, generation: Generation) -> Shipper:
        with self._lock:
            shipper = self._shipper
            if shipper is None or shipper.engine_generation != generation.number:
                self.note_fork()
                vault = self.vault(generation.store)
                shipper = self._shipper = Shipper(
                    self._recovery.engine, self._recovery.root, generation.store, vault, self.keys()
                )
            return shipper

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
            make_folder(self._recovery.root)
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
        try:
            with self.scratch("rehearsal") as scratch:
                rows = self._rehearsed(catalog, manifest, scratch)
                self._rehearse_to_the_end(catalog, plan, scratch)
        except (BackupError, sqlite3.Error, OSError, ValueError) as error:
            self._prove(failed={manifest.id: str(error)})
            self._failed("rehearsal", str(error))
            self._recovery.host.events.emit(ProofDone(what="rehearsal", outcome="failure", reason=str(error)))
            raise BackupError(f"the rehearsal of snapshot {manifest.id} failed: {error}") from error
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
        found = [str(one) for one in problems]
        if self._scrub_at == 1:
            self._prove(scrubbed=self._recovery.host.clock.wall())
        if found:
            self._failed("scrub", found[0])
            self._recovery.host.events.emit(ProofDone(what="scrub", outcome="failure", reason=found[0]))
        return found

    def scrub_all(self) -> list[str]:
        """Check the whole live state; with no service up the log too, and its end against what was shipped."""
        home = StateHome(self._recovery.root)
        if self._recovery.offline:
            if not home.exists():
                raise BackupError(f"there is no state in {home.root}")
            with home.alone() as alone:
                generation = read_current(home.root) if alone else None
                if generation is not None:
                    found = [str(one) for one in verified(home.root, generation).problems]
                    if not found:
                        self._prove(scrubbed=self._recovery.host.clock.wall())
                    return found
        self._scrub_at = 1
        return self.scrub(1 << 30)

    # -- keeping -----------------------------------------------------------------------------------------------

    def prune(self) -> dict[str, int]:
        """Remove what retention lets go, and chunks that nothing has referred to for the grace period.

        Small shipped segments are made few.
        """
        rules = self.settings.retention
        catalog = self.catalog()
        found = prune(
            catalog,
            Rules(rules.last, rules.hourly, rules.daily, rules.weekly, rules.monthly),
            proven=self.proofs(),
            grace=float(rules.grace),
            now=self._recovery.host.clock.wall(),
        )
        if catalog.refused:
            self._failed("pruning", f"nothing is removed while a manifest can't be read: {catalog.refused[0]}")
        else:
            self._succeeded("pruning")
        found["compacted"] = compact(catalog.vault, catalog.keys, self._generation().store)
        if any(found.values()):
            self._recovery.journal({"kind": "recovery.pruned", **found})
        return found

    # -- telling -----------------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Every snapshot that authenticates, newest first, with when it was proven; and those that do not."""
        catalog = self.catalog()
        proofs = self.proofs()
        found: list[dict[str, Any]] = [
            {
                "id": one.id,
                "taken": one.taken,
                "at": _moment(one.at),
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


def _moment(at: float) -> str:
    """Unix seconds as `restore --at` takes them."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


__all__ = ["Backups", "Proofs", "Vault", "manifest_name"]
