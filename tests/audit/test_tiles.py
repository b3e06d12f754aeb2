"""Tile paths, widths and bundles as tlog-tiles writes them; the growing edge against the plain tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_audit.tiles import (
    Tile,
    TreeBuilder,
    decode_bundle,
    encode_bundle,
    entries_path,
    index_path,
    parse_path,
    partial_tiles_of,
    tiles_of,
)
from deia_audit.tree import LeafList, leaf_hash, tree_root


def test_the_specifications_example_paths() -> None:
    assert index_path(1234067) == "x001/x234/067"
    assert Tile(0, 273, 112).path == "tile/0/273.p/112"
    assert entries_path(5) == "tile/entries/005"


def test_a_tree_of_70000_has_the_specifications_tiles() -> None:
    tiles = list(tiles_of(70_000))
    assert sum(tile.level == 0 and tile.width == 256 for tile in tiles) == 273
    assert partial_tiles_of(70_000) == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert list(tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1)]


@given(st.integers(0, 63), st.integers(0, 10**12), st.integers(1, 256))
def test_every_path_is_read_back(level: int, index: int, width: int) -> None:
    assert parse_path(Tile(level, index, width).path) == (str(level), index, width)
    assert parse_path(entries_path(index, width)) == ("entries", index, width)


@pytest.mark.parametrize(
    "path",
    [
        *("tile/64/000", "tile/00/000", "tile/0/00", "tile/0/x000/000", "tile/0/000.p/256"),
        *("tile/0/000.p/0", "tile/0/../000", "tile/0/1000", "tile/0/001/000", "tile//000"),
        *("tile/0/", "checkpoint", "tile/0/x00a/000", "tile/0/000.p/01"),
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        parse_path(path)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_a_bundle_gives_back_its_entries(entries: list[bytes]) -> None:
    bundle = encode_bundle(entries)
    assert decode_bundle(bundle) == entries
    if bundle:
        with pytest.raises(ValueError):
            decode_bundle(bundle[:-1] if entries[-1] or len(bundle) > 2 else bundle[:1])


def test_an_entry_too_long_for_a_bundle_is_refused() -> None:
    with pytest.raises(ValueError):
        encode_bundle([b"x" * 65_536])


@given(st.lists(st.integers(1, 700), max_size=6))
def test_the_edge_has_the_plain_trees_root_and_tiles(batches: list[int]) -> None:
    leaves: list[bytes] = []
    builder, stored = TreeBuilder(), {}
    for count in batches:
        batch = [leaf_hash(b"%d" % (len(leaves) + number)) for number in range(count)]
        leaves += batch
        stored.update(builder.extend(b"".join(batch)))
        assert builder.root() == tree_root(LeafList(leaves), len(leaves))
        partials = dict(builder.partials())
        assert {**stored, **partials}.keys() == set(tiles_of(len(leaves)))
        assert TreeBuilder.resume(len(leaves), partials).root() == builder.root()


def test_resuming_without_a_partial_tile_is_refused() -> None:
    with pytest.raises(ValueError):
        TreeBuilder.resume(3, {})
