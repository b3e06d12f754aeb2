"""Tiles on disk, in the static layout of C2SP tlog-tiles: any web server can serve the folder as it is.

Blocking; for core-owned threads. A tile that a checkpoint needs is durable before the checkpoint is written, and goes
only after one that doesn't need it. A partial tile of a higher level is shared by many checkpoints: it is never
written in place, so a kill can't take it from the one that stands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from deia_audit.files import make_folders, sync_folders, write_whole
from deia_audit.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, parse_path, partial_tiles_of
from deia_audit.tree import HASH_SIZE, node_hash


class TileError(LookupError):
    """A tile is missing or has a wrong length."""


class TileStore:
    """The tiles under one folder, which holds `checkpoint` and `tile/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, tile: Tile) -> bytes:
        """Return a tile's bytes; a partial one is also taken from the full tile. Raises TileError."""
        for candidate in (tile, Tile(tile.level, tile.index)) if tile.width != TILE_WIDTH else (tile,):
            try:
                data = (self.folder / candidate.path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if len(data) == candidate.width * HASH_SIZE:
                return data[: tile.width * HASH_SIZE]
            raise TileError(f"{candidate.path} has {len(data)} bytes instead of {candidate.width * HASH_SIZE}")
        raise TileError(f"{tile.path} is missing")

    def write(self, tiles: Iterable[tuple[Tile, bytes]]) -> None:
        """Write tiles and make them durable; each is there whole or not at all."""
        folders = []
        for tile, data in tiles:
            path = self.folder / tile.path
            if path.parent not in folders:
                make_folders(path.parent)
                folders.append(path.parent)
            write_whole(path, data)
        sync_folders(folders)

    def drop_partials(self, old: int, new: int) -> None:
        """Remove the partial tiles of size `old` that a tree of size `new` does not need."""
        keep = set(partial_tiles_of(new))
        for tile in partial_tiles_of(old):
            if tile not in keep:
                path = self.folder / tile.path
                path.unlink(missing_ok=True)
                try:
                    path.parent.rmdir()
                except OSError:  # not empty: another partial of the same tile is still needed
                    pass

    def partials(self, size: int) -> dict[Tile, bytes]:
        """Return the partial tiles of a tree of `size`. Raises TileError."""
        return {tile: self.read(tile) for tile in partial_tiles_of(size)}

    def strays(self, size: int) -> list[Path]:
        """Return what a crash left: partial tiles that a tree of `size` does not need, files that were not finished."""
        keep = {tile.path for tile in partial_tiles_of(size)}
        found = list(self.folder.glob("tile/**/.*.new"))
        for path in self.folder.glob("tile/**/*.p/*"):
            name = path.relative_to(self.folder).as_posix()
            try:
                parse_path(name)
            except ValueError:
                continue
            if name not in keep:
                found.append(path)
        return found


class TileNodes:
    """`Nodes` of a tree of `size` leaves over stored tiles, with the inner hashes of recent tiles kept.

    Not thread-safe. `limit` tiles are kept, 16 KiB each.
    """

    def __init__(self, store: TileStore, size: int, limit: int = 256) -> None:
        self.store = store
        self.size = size
        self._limit = limit
        self._tiles: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()

    def node(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        tile_index, place = divmod(index << height, TILE_WIDTH)
        start = (place >> height) * HASH_SIZE
        found = self._row(tile_level, tile_index, height)[start : start + HASH_SIZE]
        if len(found) != HASH_SIZE:
            raise TileError(f"hash {index} of level {level} is beyond a tree of {self.size}")
        return found

    def grow(self, size: int) -> None:
        """Go on with a larger tree: what was partial is forgotten."""
        if size != self.size:
            self.size = size
            whole = TILE_WIDTH * HASH_SIZE
            for key in [key for key, rows in self._tiles.items() if len(rows[0]) != whole]:
                del self._tiles[key]

    def leaf(self, index: int) -> bytes:
        """Return the stored leaf hash of entry `index`."""
        return self.node(0, index)

    def _row(self, level: int, index: int, height: int) -> bytes:
        key = (level, index)
        rows = self._tiles.get(key)
        if rows is None:
            count = (self.size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH
            if count <= 0:
                raise TileError(f"tile {index} of level {level} is beyond a tree of {self.size}")
            rows = [self.store.read(Tile(level, index, min(count, TILE_WIDTH)))]
            self._tiles[key] = rows
            if len(self._tiles) > self._limit:
                self._tiles.popitem(last=False)
        else:
            self._tiles.move_to_end(key)
        while len(rows) <= height:
            row = rows[-1]
            rows.append(
                b"".join(
                    node_hash(row[at : at + HASH_SIZE], row[at + HASH_SIZE : at + 2 * HASH_SIZE])
                    for at in range(0, len(row) - HASH_SIZE, 2 * HASH_SIZE)
                )
            )
        return rows[height]
