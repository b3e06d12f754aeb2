"""The tree as it follows from a log's lines, grown range by range and compared with the stored tiles on the way.

Keeps the roots of full tiles (32 bytes for 256 records) and the leaves of the few tiles that a root is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deia_audit.scan import Part
from deia_audit.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, full_tile_root, split_hashes, tiles_of
from deia_audit.tilestore import TileError, TileStore
from deia_audit.tree import HASH_SIZE, LeafList, tree_root

_TILE_BYTES = TILE_WIDTH * HASH_SIZE


class RebuiltTree:
    """Grows with `add`.

    `differs` is the first record whose stored leaf hash is another, `bad_tile` a damaged tile.
    """

    def __init__(self, store: TileStore, signed: int, keep: Iterable[int], reread: Callable[[int], bytes]) -> None:
        self.size = 0
        self.differs: int | None = None
        self.bad_tiles: list[str] = []
        self._store = store
        self._signed = signed
        self._keep = {size // TILE_WIDTH for size in keep}
        self._reread = reread
        self._kept: dict[int, bytes] = {}
        self._edge = bytearray()
        self._roots: list[bytes] = []
        self._upper: LeafList | None = None

    def add_stored(self, leaves: bytes) -> None:
        """Take leaf hashes of records that were pruned, from the tiles themselves."""
        for at in range(0, len(leaves), _TILE_BYTES):
            self._edge += leaves[at : at + _TILE_BYTES]
            self.size += len(leaves[at : at + _TILE_BYTES]) // HASH_SIZE
            if len(self._edge) == _TILE_BYTES:
                self._close(None, compare=False)
        self._keep.add(self.size // TILE_WIDTH)  # of this tile the log has only the rest: it can't be read again

    def add(self, part: Part) -> None:
        """Take a range that continues the log."""
        leaves = part.leaves
        head = min((TILE_WIDTH - self.size % TILE_WIDTH) % TILE_WIDTH, part.count) * HASH_SIZE
        self._edge += leaves[:head]
        self.size += head // HASH_SIZE
        if len(self._edge) == _TILE_BYTES:
            self._close(None)
        at, number = head, 0
        while at + _TILE_BYTES <= len(leaves):
            self._edge += leaves[at : at + _TILE_BYTES]
            self.size += TILE_WIDTH
            self._close(part.roots[number * HASH_SIZE : (number + 1) * HASH_SIZE])
            at, number = at + _TILE_BYTES, number + 1
        self._edge += leaves[at:]
        self.size += (len(leaves) - at) // HASH_SIZE

    def _close(self, root: bytes | None, *, compare: bool = True) -> None:
        index = self.size // TILE_WIDTH - 1
        if compare and self.size <= self._signed:
            self._compare(Tile(0, index), bytes(self._edge))
        if index in self._keep:
            self._kept[index] = bytes(self._edge)
        self._roots.append(root or full_tile_root(self._edge))
        self._edge.clear()

    def _compare(self, tile: Tile, leaves: bytes) -> None:
        try:
            stored = self._store.read(tile)
        except (TileError, OSError):
            self.bad_tiles.append(tile.path)
            return
        if stored != leaves:
            self.bad_tiles.append(tile.path)
            if self.differs is None:
                pairs = zip(split_hashes(stored), split_hashes(leaves), strict=True)
                place = next(place for place, (one, other) in enumerate(pairs) if one != other)
                self.differs = tile.index * TILE_WIDTH + place

    def finish(self) -> None:
        """Compare what only the whole shows: the last leaf tile, those of higher levels, and what older heads need."""
        width = self._signed % TILE_WIDTH
        if width and self.size >= self._signed:
            index = self._signed // TILE_WIDTH
            self._compare(Tile(0, index, width), self.leaves(index)[: width * HASH_SIZE])
        if self.size < self._signed:
            return
        for tile in tiles_of(self._signed):
            if tile.level:
                self._check(tile)
            if tile.width < TILE_WIDTH:
                for older in self._store.partials_at(tile.level, tile.index):
                    if older.width < tile.width:
                        self._check(older)

    def _check(self, tile: Tile) -> None:
        start = tile.index * TILE_WIDTH
        if tile.level:
            wanted = b"".join(self.node(tile.level * TILE_HEIGHT, start + place) for place in range(tile.width))
        else:
            wanted = self.leaves(tile.index)[: tile.width * HASH_SIZE]
        try:
            whole = self._store.read(tile) == wanted
        except (TileError, OSError):
            whole = False
        if not whole:
            self.bad_tiles.append(tile.path)

    # -- roots --

    def leaves(self, index: int) -> bytes:
        """Return the leaf hashes of tile `index` as the log has them."""
        if index == len(self._roots):
            return bytes(self._edge)
        found = self._kept.get(index)
        if found is None:
            found = self._kept[index] = self._reread(index)
        return found

    def node(self, level: int, index: int) -> bytes:
        """Return a complete subtree's hash, for `tree_root`."""
        if level >= TILE_HEIGHT:
            if self._upper is None:
                self._upper = LeafList(self._roots)
            return self._upper.node(level - TILE_HEIGHT, index)
        tile, place = divmod(index << level, TILE_WIDTH)
        return LeafList(split_hashes(self.leaves(tile))).node(level, place >> level)

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` records as the log has them."""
        return tree_root(self, size)
