"""Tiles on disk, in the static layout of C2SP tlog-tiles: any web server can serve the folder as it is.

Blocking; for core-owned threads. A tile that a checkpoint needs is durable before the checkpoint is written; a partial
one goes only once its full tile is there, as whoever holds an older checkpoint may still ask for it. No tile is written
in place, so a kill can't take it from the checkpoint that stands.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from deia_audit.files import put_in_place, sync_folder, write_beside
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
        self._durable: set[str] = set()
        """Folders whose own names this process has synced."""

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
        folder = f"{self.folder}/{Tile(level, index, 1).path}".rpartition("/")[0]
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        widths = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
        return [Tile(level, index, width) for width in widths if 0 < width < TILE_WIDTH]

    def write(self, tiles: Iterable[tuple[Tile, bytes]], beside: Iterable[tuple[Path, bytes]] = ()) -> None:
        """Write tiles and make them durable; each is there whole or not at all.

        What else is given is durable `beside` its place, in the same go: `put_in_place` is the caller's.
        """
        files = [(f"{self.folder}/{tile.path}", data) for tile, data in tiles]
        others = [(str(path), data) for path, data in beside]
        try:
            changed = self._folders({path.rpartition("/")[0] for path, _ in files})
            for at in range(0, len(files) + len(others), _AT_ONCE):
                write_beside((files + others)[at : at + _AT_ONCE])
                put_in_place(path for path, _ in files[at : at + _AT_ONCE])
            for folder in changed:
                sync_folder(folder)
        except BaseException:
            self._durable.clear()
            raise
        self._durable |= changed

    def _folders(self, folders: Iterable[str]) -> set[str]:
        """Make folders where they are missing; return those whose names must be synced: theirs, and those above new
        ones. One that was there is new too, once: who made it may have been killed before it was synced."""
        changed: set[str] = set()
        for folder in folders:
            at = folder
            while at not in changed:
                changed.add(at)
                if at in self._durable or at == str(self.folder):
                    break
                Path(at).mkdir(exist_ok=True, parents=True)
                at = at.rpartition("/")[0]
        return changed

    def drop_partials(self, tiles: Iterable[Tile]) -> None:
        """Remove the partial tiles of places that have a full one, stored; until then some checkpoint needs them."""
        for tile in tiles:
            folder = f"{self.folder}/{Tile(tile.level, tile.index, 1).path}".rpartition("/")[0]
            for partial in self.partials_at(tile.level, tile.index):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{partial.width}")  # noqa: PTH108
            self._durable.discard(folder)
            with contextlib.suppress(OSError):  # not there, or not empty: no tile of ours
                os.rmdir(folder)  # noqa: PTH106

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
