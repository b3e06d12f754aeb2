"""Small shipped segments become few, and every moment can still be restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deia_hardening.testing import FakeClock
from deia_recovery.backup.compaction import LEAST, compact
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.restore import Catalog, choose, fill
from deia_recovery.backup.shipping import Shipper
from deia_recovery.backup.snapshot import Job, take
from deia_recovery.backup.vault import FolderVault
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.generation import build
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State

KEY = bytes(range(32))


def state_at(root: Path, vault: FolderVault, number: int, until: float | None = None) -> dict[str, int]:
    catalog = Catalog(vault, KeyRing(KEY), "s")
    plan = choose(catalog, until=until)
    assert not plan.skipped
    generation = build(root / "restored", number, "s", "test", lambda c: fill(c, catalog, plan, until))
    again = Engine(generation.folder)
    try:
        return dict(Registry("n", int, state=State(again)).items().result(20))
    finally:
        again.close()
        shutil.rmtree(generation.folder)


@pytest.mark.blocking
@pytest.mark.parametrize("encrypt", [False, True])
def test_compaction_keeps_every_moment_and_what_is_shipped_later_joins(
    state: State, engine: Engine, root: Path, tmp_path: Path, clock: FakeClock, encrypt: bool
) -> None:
    vault, keys = FolderVault(tmp_path / "vault"), KeyRing(KEY, encrypt=encrypt)
    numbers: Registry[int] = Registry("n", int, state=state)
    numbers.put("a", -1).result(10)
    take(
        Job(
            database=str(engine.database), vault=str(vault.folder), store="s", generation=1, what=("all",),
            chunk=16384, key=KEY.hex(), encrypt=encrypt, now=1_700_000_000.0, nice=0,
        )
    )  # fmt: skip
    ship = Shipper(engine, root, "s", vault, keys)
    expected: list[tuple[float, dict[str, int]]] = []

    def live(count: int) -> None:
        for i in range(count):
            clock.advance(1)
            numbers.put(f"k{i % 3}", clock.wall_ns()).result(10)
            expected.append((clock.wall(), dict(numbers.items().result(10))))
            ship.run()

    live(LEAST + 4)
    assert compact(vault, keys, "s") == LEAST + 3, "all but the last, which the next one names"
    assert len(list(vault.list("segments/"))) == 2
    live(LEAST)
    ship = Shipper(engine, root, "s", vault, keys)  # another worker goes on
    live(3)
    assert compact(vault, keys, "s")
    assert len(list(vault.list("segments/"))) == 2
    assert compact(vault, keys, "s") == 0
    for number, (at, value) in enumerate(expected[:: LEAST // 4], 1):
        assert state_at(root, vault, number, at + 0.5) == value
    assert state_at(root, vault, 900) == expected[-1][1]


@pytest.mark.blocking
def test_a_damaged_segment_is_neither_merged_nor_removed(
    state: State, engine: Engine, root: Path, tmp_path: Path
) -> None:
    vault, keys = FolderVault(tmp_path / "vault"), KeyRing(KEY)
    numbers: Registry[int] = Registry("n", int, state=state)
    ship = Shipper(engine, root, "s", vault, keys)
    for i in range(2 * LEAST + 6):
        numbers.put("a", i).result(10)
        ship.run()
    names = sorted(vault.list("segments/"))
    bad = names[LEAST + 2]
    data = bytearray(vault.get(bad))
    data[-1] ^= 1
    vault.replace(bad, bytes(data))
    compact(vault, keys, "s")
    left = sorted(vault.list("segments/"))
    assert bad in left
    assert vault.get(bad) == bytes(data)
    assert len(left) == 4, "one before it, itself, one behind it, and the last"
