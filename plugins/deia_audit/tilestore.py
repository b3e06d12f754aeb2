"""Tiles on disk, in the static layout of C2SP tlog-tiles: any web server can serve the folder as it is.

Blocking; for core-owned threads. A tile that a checkpoint needs is durable before the checkpoint is written; a partial
one goes only once its full tile is there, as whoever holds an older checkpoint may still ask for it. No tile is written
in place, so a kill can't take it from the checkpoint that stands.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from deia_audit.files import make_folders, sync_folders, write_whole
from deia_audit.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, parse_path, partial_tiles_of
from deia_audit.tree import HASH_SIZE, node_hash

_AT_ONCE = 64
"""Files that are open at once."""


class TileError(LookupError):
    """A tile is missing or has a wrong length."""


class TileStore:
    """The tiles under one folder, which holds `checkpoint` and `tile/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, tile: Tile) -> bytes:
        """Return a tile's bytes; a partial one is also taken from a wider one. Raises TileError."""
        for candidate in self._candidates(tile):
            try:
                with open(f"{self.folder}/{candidate.path}", "rb", buffering=0) as file:  # a Path costs twice as much
                    data = file.read()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if len(data) == candidate.width * HASH_SIZE:
                return data[: tile.width * HASH_SIZE]
            raise TileError(f"{candidate.path} has {len(data)} bytes instead of {candidate.width * HASH_SIZE}")
        raise TileError(f"{tile.path} is missing")

    def _candidates(self, tile: Tile) -> Iterator[Tile]:
        yield tile
        if tile.width != TILE_WIDTH:
            yield Tile(tile.level, tile.index)
            yield from (wider for wider in self.partials_at(tile.level, tile.index) if wider.width > tile.width)

    def partials_at(self, level: int, index: int) -> list[Tile]:
        """Return the partial tiles that are stored at one place, the narrowest first."""
        folder = (self.folder / Tile(level, index, 1).path).parent
        try:
            names = [path.name for path in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        widths = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
        return [Tile(level, index, width) for width in widths if 0 < width < TILE_WIDTH]

    def write(self, tiles: Iterable[tuple[Tile, bytes]]) -> None:
        """Write tiles and make them durable; each is there whole or not at all."""
        files = [(self.folder / tile.path, data) for tile, data in tiles]
        folders = {path.parent for path, _data in files}
        for folder in sorted(folders):
            make_folders(folder)
        for at in range(0, len(files), _AT_ONCE):
            write_whole(files[at : at + _AT_ONCE])
        sync_folders(folders)

    def drop_partials(self, full: Iterable[Tile]) -> None:
        """Remove the partial tiles of tiles that are full now, and stored; until then some checkpoint needs them."""
        for tile in full:
            found = self.partials_at(tile.level, tile.index)
            for partial in found:
                (self.folder / partial.path).unlink(missing_ok=True)
            if found:
                with contextlib.suppress(OSError):  # not empty: no tile of ours
                    (self.folder / found[0].path).parent.rmdir()

    def partials(self, size: int) -> dict[Tile, bytes]:
        """Return the partial tiles of a tree of `size`. Raises TileError."""
        return {tile: self.read(tile) for tile in partial_tiles_of(size)}

    def strays(self, size: int) -> list[Path]:
        """Return what a crash left: partial tiles of a later size than `size` or of full tiles, unfinished files."""
        found = list(self.folder.glob("tile/**/.*.new"))
        for path in self.folder.glob("tile/**/*.p/*"):
            try:
                level, index, width = parse_path(path.relative_to(self.folder).as_posix())
            except ValueError:
                continue
            have = (size >> (TILE_HEIGHT * int(level))) - index * TILE_WIDTH
            if width > have or have >= TILE_WIDTH:
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
        rows = self._tiles.get((0, index >> TILE_HEIGHT))
        if rows is not None:  # the usual case of a search, at a fifth of what `node` costs
            start = (index & TILE_WIDTH - 1) * HASH_SIZE
            found = rows[0][start : start + HASH_SIZE]
            if len(found) == HASH_SIZE:
                return found
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
