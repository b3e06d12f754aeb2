"""Restoring: the newest snapshot that verifies, and every shipped change that joins it, into a new generation.

Nothing is read that does not authenticate; nothing damaged is changed or deleted. A snapshot that misses a chunk is
left out and the next older one tried, and that is said. Building starts anew after a crash; what is in force changes
with one rename at the end.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import attrs
import msgspec

from deia_recovery.backup.chunks import unpack
from deia_recovery.backup.dump import chunks_of, load_rows
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.manifest import Manifest, manifest_name, read_manifest
from deia_recovery.backup.segments import Entry, Segment, read_segment, span_of
from deia_recovery.backup.vault import Vault, chunk_name
from deia_recovery.engine.engine import decode_ops, encode_ops
from deia_recovery.engine.schema import TABLE, sql_of
from deia_recovery.errors import BackupError, WrongKey


@attrs.frozen
class Plan:
    """What would be restored: the snapshot, up to where shipped changes reach, and what was left out and why.

    `generation` is the one whose history the end belongs to: changes may lead on through several.
    """

    snapshot: Manifest
    position: int
    at: float
    commits: int
    generation: int
    skipped: tuple[str, ...] = ()


@attrs.frozen
class Fork:
    """A generation's begin: from which one, at which position, and (Unix seconds) since when it is in force."""

    store: str
    generation: int
    parent: int
    position: int
    at: float = 0.0


class Catalog:
    """The backups of one store in one vault, as far as they authenticate. Blocking."""

    def __init__(self, vault: Vault, keys: KeyRing, store: str | None = None) -> None:
        self.vault = vault
        self.keys = keys
        self.store = store
        self.refused: list[str] = []
        """What was found and not believed, with the reason."""
        self.wrong_key: WrongKey | None = None

    def ids(self) -> list[str]:
        """The ids of all manifests, newest first, whether they verify or not."""
        names = [n for n in self.vault.list("snapshots/") if n.endswith(".json")]
        return sorted((n.rsplit("/", 1)[1].removesuffix(".json") for n in names), reverse=True)

    def manifest(self, snapshot: str) -> Manifest:
        """One manifest, checked. Raises BackupError, WrongKey, StateError."""
        name = manifest_name(snapshot)
        try:
            found = read_manifest(self.vault.get(name), self.keys, f"{self.vault.where}/{name}")
        except FileNotFoundError as error:
            raise BackupError(f"there is no snapshot {snapshot!r} in {self.vault.where}") from error
        if found.id != snapshot:
            raise BackupError(f"{name} is the manifest of {found.id}: it was put in another's place")
        if self.store is not None and found.store != self.store:
            raise BackupError(f"{name} belongs to another store ({found.store})")
        return found

    def manifests(self) -> list[Manifest]:
        """All that verify, newest state first; the others are in `refused`."""
        found = []
        for snapshot in self.ids():
            try:
                found.append(self.manifest(snapshot))
            except WrongKey as error:
                self.wrong_key = error
                self.refused.append(str(error))
            except (BackupError, OSError) as error:
                self.refused.append(str(error))
        return sorted(found, key=lambda one: (one.generation, one.position, one.taken), reverse=True)

    def chunk(self, name: str) -> bytes:
        """A chunk's content. Raises BackupError when it is missing or is not what its name says."""
        try:
            return unpack(name, self.vault.get(chunk_name(name)), self.keys)
        except FileNotFoundError as error:
            raise BackupError(f"chunk {name} is missing") from error
        except ValueError as error:
            raise BackupError(f"chunk {name}: {error}") from error

    def check(self, manifest: Manifest) -> list[str]:
        """Open every chunk. Returns what is wrong with the snapshot; nothing: it can be restored."""
        problems = []
        for ref in manifest.chunks():
            try:
                if len(self.chunk(ref.name)) != ref.plain:
                    problems.append(f"chunk {ref.name} has another size than the manifest says")
            except (BackupError, OSError) as error:
                problems.append(str(error))
        return problems

    def segments(self, generation: int, position: int, *, until_position: int | None = None) -> Iterator[Segment]:
        """The shipped changes of a generation that join `position` without a gap, in order, checked.

        Ends before the first that is missing, does not verify or does not join; why is in `refused`.
        """
        spans = []
        for name in self.vault.list(f"segments/g{generation:06d}/"):
            span = span_of(name)
            if span is not None and span[2] > position:
                spans.append((span[1], -span[2], name))
        spans.sort()
        before: str | None = None
        for _, _, name in spans:
            span = span_of(name)
            if span is None or span[2] <= position:
                continue
            try:
                segment = read_segment(self.vault.get(name), self.keys, f"{self.vault.where}/{name}")
            except (BackupError, WrongKey, OSError) as error:
                self.refused.append(str(error))
                continue  # a compacted twin may hold the same span
            head = segment.head
            if head.generation != generation or (self.store is not None and head.store != self.store):
                self.refused.append(f"{name} belongs to another store or generation")
                continue
            if head.after > position or (before is not None and head.before != before and head.after == position):
                self.refused.append(f"{name} does not join what ends at position {position}: there is a gap")
                return
            yield segment
            position, before = head.last, segment.digest
            if until_position is not None and position >= until_position:
                return

    def forks(self) -> dict[int, Fork]:
        """Where each generation came from, as far as that authenticates."""
        found: dict[int, Fork] = {}
        for name in self.vault.list("generations/"):
            data = self.vault.get(name)
            body, _, mac = data.partition(b"\n")
            if not self.keys.verify(body, mac.strip().decode("ascii", "replace")):
                self.refused.append(f"{name} does not authenticate")
                continue
            fork = msgspec.json.decode(body, type=Fork)
            if self.store is None or fork.store == self.store:
                found[fork.generation] = fork
        return found

    def write_fork(self, fork: Fork) -> None:
        """Note where a generation begins."""
        body = msgspec.json.encode(fork)
        self.vault.replace(_fork_name(fork.generation), body + b"\n" + self.keys.mac(body).encode())

    def knows_fork(self, generation: int) -> bool:
        """Whether it is noted where a generation begins."""
        return self.vault.size(_fork_name(generation)) is not None

    def newest_generation(self) -> int:
        """The highest generation that anything here belongs to, believed or not: a new one is numbered above it."""
        numbers = [fork.generation for fork in self.forks().values()]
        numbers += [manifest.generation for manifest in self.manifests()]
        numbers += [span[0] for name in self.vault.list("segments/") if (span := span_of(name)) is not None]
        return max(numbers, default=0)

    def was_left(self, manifest: Manifest) -> bool:
        """Whether a snapshot is of a past that was left by going back: not what leads to the state in force."""
        forks = self.forks()
        generation, end = max(forks, default=0), None
        while generation > manifest.generation and generation in forks:
            generation, end = forks[generation].parent, forks[generation].position
        return bool(forks) and (
            generation < manifest.generation < max(forks) or (end is not None and end < manifest.position)
        )

    def entries(self, manifest: Manifest, until: float | None = None) -> Iterator[Entry]:
        """The commits that lead on from a snapshot: through its generation, and those that forked from it."""
        for _, entry in self.walk(manifest, until):
            if entry is not None:
                yield entry

    def walk(self, manifest: Manifest, until: float | None = None) -> Iterator[tuple[int, Entry | None]]:
        """The same with each one's generation; (generation, None) where another one begins.

        With `until` along the history that was in force then, be it left since.
        """
        forks = sorted(self.forks().items())
        children = {fork.parent: fork for _, fork in forks if until is None or fork.at <= until}
        generation, position = manifest.generation, manifest.position
        while True:
            child = children.get(generation)
            if child is not None and child.position < position:
                child = None  # the snapshot is of a branch that was left
            for segment in self.segments(generation, position):
                for entry in segment.entries:
                    if until is not None and entry[1] / 1000 > until:
                        return
                    if child is not None and entry[0] > child.position:
                        break
                    if entry[0] > position:
                        position = entry[0]
                        yield generation, entry
                if child is not None and position >= child.position:
                    break
            if child is None or position != child.position:
                return
            generation = child.generation
            yield generation, None

    def reach(self, manifest: Manifest, until: float | None = None) -> tuple[int, float, int, int]:
        """(position, time, commits, generation) up to which shipped changes lead on from a snapshot."""
        position, at, count, last = manifest.position, manifest.at, 0, manifest.generation
        for generation, entry in self.walk(manifest, until):
            last = generation
            if entry is not None:
                position, at, count = entry[0], entry[1] / 1000, count + 1
        return position, at, count, last


def _fork_name(generation: int) -> str:
    return f"generations/g{generation:06d}.json"


def choose(
    catalog: Catalog,
    *,
    snapshot: str | None = None,
    until: float | None = None,
    floor: int | None = None,
    tables: Iterable[str] | None = None,
) -> Plan:
    """Which snapshot and how far. `until`: Unix seconds to restore to; `floor`: a position known to be in the backups;
    `tables`: what the snapshot must hold, if not all.

    Raises BackupError when nothing fits, WrongKey when all there is was made with another key.
    """
    skipped: list[str] = []
    needed = None if tables is None else set(tables)

    def fits(one: Manifest) -> bool:
        return one.whole if needed is None else needed <= one.tables.keys()

    if snapshot is not None:
        manifests = [catalog.manifest(snapshot)]
    else:
        later = set() if until is None else {fork.generation for fork in catalog.forks().values() if fork.at > until}
        manifests = [
            one
            for one in catalog.manifests()
            if fits(one) and (until is None or (one.at <= until and one.generation not in later))
        ]
        skipped.extend(catalog.refused)
    for manifest in manifests:
        if snapshot is None and until is None and catalog.was_left(manifest):
            skipped.append(f"snapshot {manifest.id} is of a past that was left: name it to restore it")
            continue
        problems = catalog.check(manifest)
        if problems:
            skipped.append(f"snapshot {manifest.id}: {problems[0]} ({len(problems)} such findings)")
            continue
        refused = len(catalog.refused)
        position, at, commits, generation = catalog.reach(manifest, until)
        skipped.extend(catalog.refused[refused:])
        if floor is not None and until is None and position < floor:
            skipped.append(
                f"snapshot {manifest.id} leads to position {position}, but changes up to {floor} were shipped"
            )
            continue
        return Plan(manifest, position, at, commits, generation, tuple(skipped))
    if catalog.wrong_key is not None and not manifests:
        raise catalog.wrong_key
    raise BackupError(
        "no snapshot can be restored"
        + "".join(f"; {text}" for text in skipped[:10])
        + f" (looked in {catalog.vault.where})"
    )


def fill(connection: sqlite3.Connection, catalog: Catalog, plan: Plan, until: float | None = None) -> None:
    """Write a plan's rows and changes into an empty state database, inside the caller's transaction."""
    load_tables(connection, catalog, plan.snapshot)
    position, at = plan.snapshot.position, int(plan.snapshot.at * 1000)
    for end, milliseconds, blob in catalog.entries(plan.snapshot, until):
        ops = decode_ops(blob)
        if end - len(ops) != position:
            raise BackupError(f"a shipped change at position {end} does not follow position {position}")
        for change in ops:
            connection.execute(*sql_of(change))
        position, at = end, milliseconds
    if position != plan.position:
        raise BackupError(f"the restore reached position {position}, planned was {plan.position}")
    connection.execute("DELETE FROM changes")
    connection.execute("INSERT INTO changes(position, at, ops) VALUES(?, ?, ?)", (position, at, encode_ops([])))


def load_tables(
    connection: sqlite3.Connection, catalog: Catalog, manifest: Manifest, only: Container[str] | None = None
) -> None:
    """Insert a snapshot's rows (of all tables, or `only` some) and compare their number with the manifest's."""
    for name, part in manifest.tables.items():
        if only is not None and name not in only:
            continue
        if name not in TABLE:
            raise BackupError(f"snapshot {manifest.id} has a table {name!r} that this release does not know")
        rows = 0
        for ref in part.chunks:
            try:
                rows += load_rows(connection, name, part.columns, catalog.chunk(ref.name))
            except (ValueError, msgspec.DecodeError, sqlite3.Error) as error:
                raise BackupError(f"snapshot {manifest.id}, chunk {ref.name}: {error}") from error
        if rows != part.rows:
            raise BackupError(f"snapshot {manifest.id}: table {name} has {rows} rows, the manifest says {part.rows}")


def recomputed_names(connection: sqlite3.Connection, manifest: Manifest, keys: KeyRing) -> dict[str, list[str]]:
    """The chunk names that the rows in a database give, for comparing with a manifest's (a rehearsal's proof)."""
    return {
        name: [keys.name(plain) for plain, _ in chunks_of(connection, TABLE[name], manifest.chunk_size)]
        for name in manifest.tables
    }


def restore_files(catalog: Catalog, manifest: Manifest, *, aside: str | None) -> list[str]:
    """Write protected files back. One that exists stays, unless `aside` names the suffix it is renamed with first.

    Returns what was done, a sentence each.
    """
    done = []
    for name, part in manifest.files.items():
        base = Path(part.source)
        for file in part.files:
            path = base / file.path if part.kind == "folder" else base
            if path.is_symlink() or path.exists():
                if aside is None:
                    done.append(f"{name}: {path} exists and was left alone")
                    continue
                kept = path.with_name(f"{path.name}.before-{aside}")
                path.rename(kept)
                done.append(f"{name}: what was at {path} is now {kept}")
            _write_file(catalog, path, file.mode, [ref.name for ref in file.chunks], file.target, base)
            done.append(f"{name}: {path} restored")
    return done


def _write_file(catalog: Catalog, path: Path, mode: int, chunks: list[str], target: str, base: Path) -> None:
    inside = path.resolve().is_relative_to(base.resolve()) or path == base
    if not inside:
        raise BackupError(f"{path} would be written outside of {base}: the snapshot is not to be trusted")
    path.parent.mkdir(parents=True, exist_ok=True)
    if target:
        path.symlink_to(target)
        return
    beside = path.with_name(f".{path.name}.restoring")
    with beside.open("wb") as stream:
        for name in chunks:
            stream.write(catalog.chunk(name))
        stream.flush()
        os.fsync(stream.fileno())
    beside.chmod(mode)
    beside.replace(path)
