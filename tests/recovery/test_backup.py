"""Backups: every damage is found, no wrong state is ever restored, the same megabyte is stored once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import msgspec
import pytest

from deia_recovery.backup.chunks import pack, unpack
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.manifest import manifest_name, read_manifest, write_manifest
from deia_recovery.backup.restore import Catalog, choose, fill, recomputed_names
from deia_recovery.backup.segments import span_of
from deia_recovery.backup.shipping import Shipper
from deia_recovery.backup.snapshot import Job, Result, take
from deia_recovery.backup.vault import FolderVault, chunk_name
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.generation import build
from deia_recovery.errors import BackupError, StateError, WrongKey
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State

KEY = bytes(range(32))


@pytest.fixture
def vault(tmp_path: Path) -> FolderVault:
    return FolderVault(tmp_path / "vault")


def job(engine: Engine, vault: FolderVault, **more: object) -> Job:
    values = {
        "database": str(engine.database),
        "vault": str(vault.folder),
        "store": "s",
        "generation": 1,
        "what": ("all",),
        "chunk": 16384,
        "key": KEY.hex(),
        "encrypt": False,
        "now": 1_700_000_000.0,
        "nice": 0,
    }
    return Job(**{**values, **more})  # type: ignore[arg-type]


def shipper(engine: Engine, root: Path, vault: FolderVault, keys: KeyRing) -> Shipper:
    return Shipper(engine, root, "s", vault, keys)


def restored(root: Path, catalog: Catalog, until: float | None = None) -> dict[str, int]:
    """What a restore gives, as plain numbers."""
    plan = choose(catalog, until=until)
    number = random.randrange(100, 900_000)
    generation = build(root / "restored", number, "s", "test", lambda c: fill(c, catalog, plan, until))
    again = Engine(generation.folder)
    try:
        found = Registry("n", int, state=State(again)).items(limit=100_000).result(20)
    finally:
        again.close()
        shutil.rmtree(generation.folder)
    return dict(found)


def test_a_snapshot_in_a_process_of_its_own_says_nothing_but_its_result(
    state: State, engine: Engine, vault: FolderVault
) -> None:
    Registry("n", int, state=state).put("a", 1).result(10)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "deia_recovery.backup"],
        input=msgspec.json.encode(job(engine, vault)),
        capture_output=True,
        check=True,
    )
    assert not run.stderr
    result = msgspec.json.decode(run.stdout, type=Result)
    assert result.id
    assert not result.error


@pytest.mark.parametrize("encrypt", [False, True])
def test_a_snapshot_and_what_was_shipped_give_the_state_back(
    state: State, engine: Engine, root: Path, vault: FolderVault, encrypt: bool
) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    keys = KeyRing(KEY, encrypt=encrypt)
    for i in range(500):
        numbers.put(f"k{i}", i)
    numbers.delete("k3").result(10)
    result = take(job(engine, vault, encrypt=encrypt))
    assert result.rows == 499
    numbers.put("k0", -1).result(10)
    numbers.delete("k1").result(10)
    ship = shipper(engine, root, vault, keys)
    ship.run()
    numbers.put("late", 1).result(10)
    ship.run()
    expected = dict(numbers.items().result(10))
    assert restored(root, Catalog(vault, keys, "s")) == expected
    if encrypt:
        stored = b"".join(path.read_bytes() for path in vault.folder.rglob("*") if path.is_file())
        assert b"k499" not in stored


def test_an_unchanged_megabyte_is_stored_once(state: State, engine: Engine, vault: FolderVault) -> None:
    texts: Registry[str] = Registry("n", str, state=state)
    for i in range(3000):
        last = texts.put(f"k{i:05}", os.urandom(150).hex())
    last.result(10)
    first = take(job(engine, vault))
    again = take(job(engine, vault, now=1_700_000_100.0))
    assert (again.chunks_new, again.bytes_new) == (0, 0)
    texts.put("k01500b", "in the middle").result(10)
    third = take(job(engine, vault, now=1_700_000_200.0))
    assert first.chunks > 10
    assert third.chunks_new <= 3


def test_a_damaged_chunk_is_written_anew_by_the_next_snapshot(state: State, engine: Engine, vault: FolderVault) -> None:
    Registry("n", int, state=state).put("a", 1).result(10)
    result = take(job(engine, vault))
    manifest = Catalog(vault, KeyRing(KEY), "s").manifest(result.id)
    path = vault.folder / chunk_name(manifest.chunks()[0].name)
    path.write_bytes(path.read_bytes()[:-1])
    assert take(job(engine, vault, now=1_700_000_100.0)).healed == 1
    assert Catalog(vault, KeyRing(KEY), "s").check(manifest) == []


def prepared(state: State, engine: Engine, root: Path, vault: FolderVault, keys: KeyRing) -> list[dict[str, int]]:
    """Two snapshots with shipped changes between and after; returns every state that may rightly be restored."""
    numbers: Registry[int] = Registry("n", int, state=state)
    ship = shipper(engine, root, vault, keys)
    states = []
    for step in range(4):
        for i in range(40):
            last = numbers.put(f"k{i}", step * 1000 + i)
        last.result(10)
        ship.run()
        states.append(dict(numbers.items().result(10)))
        if step in (0, 2):
            take(job(engine, vault, now=1_700_000_000.0 + step, encrypt=keys.encrypt))
    return states


def _campaign(state: State, engine: Engine, root: Path, vault: FolderVault, rounds: int, encrypt: bool) -> None:
    seed = int(os.environ.get("DEIA_FAULT_SEED", random.randrange(1 << 32)))
    print(f"DEIA_FAULT_SEED={seed}")
    dice = random.Random(seed)
    keys = KeyRing(KEY, encrypt=encrypt)
    states = prepared(state, engine, root, vault, keys)
    files = sorted(path for path in vault.folder.rglob("*") if path.is_file())
    harmless = 0
    for number in range(rounds):
        path = dice.choice(files)
        good = path.read_bytes()
        kind = dice.choice(["flip", "flip", "flip", "cut", "swap", "stale", "forge", "missing"])
        other = dice.choice(files)
        if kind == "flip":
            bad = bytearray(good)
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
            path.write_bytes(bad)
        elif kind == "cut":
            path.write_bytes(good[: dice.randrange(len(good))])
        elif kind == "swap" or kind == "stale":
            path.write_bytes(other.read_bytes())
        elif kind == "forge":
            path.write_bytes(good.replace(b"1", b"2", 1) if b"1" in good else os.urandom(len(good)))
        else:
            path.unlink()
        changed = not path.exists() or (path.read_bytes() != good and not _opens(path, keys))
        where = f"seed {seed} round {number}: {kind} {path.relative_to(vault.folder)}"
        catalog = Catalog(vault, keys, "s")
        found = _found(catalog)
        if changed:
            assert found, f"{where}: not found"
        else:
            harmless += 1
        try:
            assert restored(root, Catalog(vault, keys, "s")) in states, f"{where}: a state that never was"
        except (BackupError, WrongKey, StateError):
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good)
    assert harmless < rounds / 4
    assert restored(root, Catalog(vault, keys, "s")) == states[-1]


def _opens(path: Path, keys: KeyRing) -> bool:
    """Whether a chunk's file still opens to what its name is the hash of: compression has bits that mean nothing."""
    try:
        unpack(path.name, path.read_bytes(), keys)
    except ValueError:
        return False
    return True


def _found(catalog: Catalog) -> bool:
    """Whether verification reports anything: unreadable manifests, bad chunks, gaps in what was shipped."""
    manifests = catalog.manifests()
    if catalog.refused or len(manifests) < 2:
        return True
    if any(catalog.check(manifest) for manifest in manifests):
        return True
    oldest = min(manifests, key=lambda one: one.position)
    ends = [span[2] for name in catalog.vault.list("segments/") if (span := span_of(name))]
    begins = [span[1] for name in catalog.vault.list("segments/") if (span := span_of(name))]
    reached = catalog.reach(oldest)[0]
    if begins and min(begins) < oldest.position:
        list(catalog.segments(1, min(begins)))
    return bool(catalog.refused) or not ends or reached < 160 or len(ends) < 4


@pytest.mark.parametrize("encrypt", [False, True])
def test_damage_anywhere_in_the_backups_is_found_and_never_restored(
    state: State, engine: Engine, root: Path, vault: FolderVault, encrypt: bool
) -> None:
    _campaign(state, engine, root, vault, 60, encrypt)


@pytest.mark.slow
@pytest.mark.fault
def test_ten_thousand_damages_in_the_backups(state: State, engine: Engine, root: Path, vault: FolderVault) -> None:
    _campaign(state, engine, root, vault, int(os.environ.get("DEIA_CAMPAIGN", "10000")), False)


def test_point_in_time_gives_each_state_as_it_was(
    state: State, engine: Engine, root: Path, vault: FolderVault, clock: object
) -> None:
    numbers: Registry[int] = Registry("n", int, state=state)
    keys = KeyRing(KEY)
    take(job(engine, vault))
    ship = shipper(engine, root, vault, keys)
    expected: list[tuple[float, dict[str, int]]] = []
    for i in range(6):
        clock.advance(1)  # type: ignore[attr-defined]
        numbers.put(f"k{i % 3}", i).result(10)
        expected.append((clock.wall(), dict(numbers.items().result(10))))  # type: ignore[attr-defined]
        if i % 2:
            ship.run()
    for at, value in expected:
        assert restored(root, Catalog(vault, keys, "s"), until=at + 0.5) == value


def test_another_key_a_newer_release_and_another_store_are_told_apart(
    state: State, engine: Engine, vault: FolderVault
) -> None:
    Registry("n", int, state=state).put("a", 1).result(10)
    result: Result = take(job(engine, vault))
    keys = KeyRing(KEY)
    with pytest.raises(WrongKey, match="was made with the key"):
        choose(Catalog(vault, KeyRing(b"x" * 32), "s"))
    with pytest.raises(BackupError):
        choose(Catalog(vault, keys, "other"))
    manifest = Catalog(vault, keys, "s").manifest(result.id)
    newer = write_manifest(attrs.evolve(manifest, schema=99), keys)
    with pytest.raises(StateError, match="newer release"):
        read_manifest(newer, keys, "here")
    unsigned = write_manifest(manifest, keys).split(b"\n")[0] + b"\n"
    vault.replace(manifest_name(manifest.id), unsigned)
    with pytest.raises(BackupError):
        choose(Catalog(vault, keys, "s"))


def test_a_missing_chunk_means_the_next_older_snapshot_and_is_said(
    state: State, engine: Engine, root: Path, vault: FolderVault
) -> None:
    keys = KeyRing(KEY)
    states = prepared(state, engine, root, vault, keys)
    catalog = Catalog(vault, keys, "s")
    new, old = catalog.manifests()
    only_new = {ref.name for ref in new.chunks()} - {ref.name for ref in old.chunks()}
    (vault.folder / chunk_name(sorted(only_new)[0])).unlink()
    plan = choose(Catalog(vault, keys, "s"))
    assert plan.snapshot.id == old.id
    assert any("is missing" in text for text in plan.skipped)
    assert restored(root, Catalog(vault, keys, "s")) == states[-1]


def test_a_restore_that_would_end_before_what_is_known_is_refused(
    state: State, engine: Engine, root: Path, vault: FolderVault
) -> None:
    keys = KeyRing(KEY)
    prepared(state, engine, root, vault, keys)
    last = sorted(vault.list("segments/"))[-1]
    vault.delete(last)
    with pytest.raises(BackupError, match="were shipped"):
        choose(Catalog(vault, keys, "s"), floor=160)
    assert choose(Catalog(vault, keys, "s")).position == 120


def test_a_rebuilt_database_gives_the_same_chunk_names(
    state: State, engine: Engine, root: Path, vault: FolderVault
) -> None:
    keys = KeyRing(KEY)
    prepared(state, engine, root, vault, keys)
    catalog = Catalog(vault, keys, "s")
    manifest = catalog.manifests()[0]

    def load(connection: object) -> None:
        from deia_recovery.backup.restore import load_tables

        load_tables(connection, catalog, manifest)  # type: ignore[arg-type]
        names = recomputed_names(connection, manifest, keys)  # type: ignore[arg-type]
        assert names == {name: [ref.name for ref in part.chunks] for name, part in manifest.tables.items()}

    build(root / "again", 1, "s", "test", load)


@pytest.mark.parametrize("encrypt", [False, True])
def test_chunks_open_only_as_what_they_are_named(encrypt: bool) -> None:
    keys = KeyRing(KEY, encrypt=encrypt)
    name, stored = pack(b"hello" * 1000, keys)
    assert unpack(name, stored, keys) == b"hello" * 1000
    assert pack(b"hello" * 1000, keys) == (name, stored)
    other, _ = pack(b"other", keys)
    with pytest.raises(ValueError):
        unpack(other, stored, keys)
    if encrypt:
        with pytest.raises(ValueError, match="another key"):
            unpack(name, stored, KeyRing(b"x" * 32, encrypt=True))


def test_the_change_log_is_cut_only_behind_what_was_shipped(
    state: State, engine: Engine, root: Path, vault: FolderVault
) -> None:
    from deia_recovery.engine.options import EngineOptions

    engine.options = EngineOptions(reserve=0, keep_changes=10)
    numbers: Registry[int] = Registry("n", int, state=state)
    for i in range(50):
        numbers.put("a", i).result(10)
    ship = shipper(engine, root, vault, KeyRing(KEY))
    ship.trim()
    ship.run()
    for i in range(50):
        numbers.put("a", i).result(10)
    ship.trim()
    left = engine.read_here(lambda c: c.execute("SELECT min(position), max(position) FROM changes").fetchone())
    assert left == (41, 100)
    ship.run()
    again = shipper(engine, root, vault, KeyRing(KEY))
    numbers.put("a", 7).result(10)
    assert again.run().position == 101  # type: ignore[union-attr]
