"""Tiles: the tree cut into files of 256 hashes, as C2SP tlog-tiles names and lays them out.

Pure: paths, widths, entry bundles, and a builder that takes leaf hashes and says which tiles have become
full. Who writes them is `tilestore`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import attrs

from deia_audit.tree import EMPTY_ROOT, HASH_SIZE, root_of

TILE_WIDTH = 256
TILE_HEIGHT = 8
MAX_ENTRY = 0xFFFF
"""The longest entry in bytes that an entry bundle can carry (a uint16 length prefix)."""
_node: Callable[[], Any] = sha256(b"\x01").copy
_pairs = struct.Struct(f"{2 * HASH_SIZE}s").iter_unpack


@attrs.frozen(slots=True)
class Tile:
    """One tile: its level, its index within the level and its width in hashes (1 to 256)."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix: `tile/<L>/<N>[.p/<W>]`."""
        return f"tile/{self.level}/{index_path(self.index)}{_suffix(self.width)}"

    def full_in(self, size: int) -> bool:
        """Whether this tile's place is full in a tree of `size` leaves."""
        return size >> TILE_HEIGHT * (self.level + 1) > self.index


def index_path(index: int) -> str:
    """Return `index` in three-digit path elements, all but the last with an `x`: 1234067 is `x001/x234/067`."""
    parts = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        parts.append(f"x{index % 1000:03d}")
    return "/".join(reversed(parts))


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of an entry bundle: `tile/entries/<N>[.p/<W>]`."""
    return f"tile/entries/{index_path(index)}{_suffix(width)}"


def _suffix(width: int) -> str:
    if not 1 <= width <= TILE_WIDTH:
        raise ValueError(f"a tile is 1 to {TILE_WIDTH} hashes wide, not {width}")
    return "" if width == TILE_WIDTH else f".p/{width}"


def parse_path(path: str) -> tuple[str, int, int]:
    """Take `tile/<L>/<N>[.p/<W>]` apart into (level as text or `entries`, index, width).

    Raises ValueError.
    """
    head, _, rest = path.partition("/")
    level, _, rest = rest.partition("/")
    if head != "tile" or not rest or len(path) > 128 or not path.isascii():
        raise ValueError("not a tile path")
    if level != "entries" and (not level.isdecimal() or str(int(level)) != level or int(level) > 63):
        raise ValueError("a tile's level is a number from 0 to 63")
    width = TILE_WIDTH
    if ".p/" in rest:
        rest, _, number = rest.partition(".p/")
        if not number.isdecimal() or str(int(number)) != number or not 1 <= int(number) < TILE_WIDTH:
            raise ValueError("a partial tile's width is a number from 1 to 255")
        width = int(number)
    index = 0
    parts = rest.split("/")
    for place, part in enumerate(parts):
        digits = part.removeprefix("x") if place < len(parts) - 1 else part
        if len(digits) != 3 or not digits.isdecimal() or (place < len(parts) - 1) != part.startswith("x"):
            raise ValueError("a tile's index is written in three-digit elements, all but the last with an x")
        index = index * 1000 + int(digits)
    if index_path(index) != rest:
        raise ValueError("a tile's index has no leading zero elements")
    return level, index, width


def tiles_of(size: int) -> Iterator[Tile]:
    """Yield every tile, full and partial, of a tree of `size` leaves, lowest level first."""
    level, count = 0, size
    while count:
        for index in range(count // TILE_WIDTH):
            yield Tile(level, index)
        if count % TILE_WIDTH:
            yield Tile(level, count // TILE_WIDTH, count % TILE_WIDTH)
        level, count = level + 1, count // TILE_WIDTH


def partial_tiles_of(size: int) -> list[Tile]:
    """Return the partial tiles, at most one a level, of a tree of `size` leaves."""
    found = []
    level, count = 0, size
    while count:
        if count % TILE_WIDTH:
            found.append(Tile(level, count // TILE_WIDTH, count % TILE_WIDTH))
        level, count = level + 1, count // TILE_WIDTH
    return found


def split_hashes(data: bytes) -> list[bytes]:
    """Return the hashes of a tile's bytes. Raises ValueError for a length that is no tile's."""
    if not data or len(data) % HASH_SIZE or len(data) > TILE_WIDTH * HASH_SIZE:
        raise ValueError(f"{len(data)} bytes are not a tile")
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def full_tile_root(data: bytes | bytearray) -> bytes:
    """Return the root of a full tile's 256 hashes; 0.3 µs a hash."""
    row: bytes = bytes(data)
    while len(row) > HASH_SIZE:  # a copied hash costs half of what a new one does; `update` returns None
        row = b"".join([node.digest() for (pair,) in _pairs(row) if not (node := _node()).update(pair)])
    return row


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle: each entry behind its big-endian uint16 length."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"an entry of {len(entry)} bytes does not fit a bundle (at most {MAX_ENTRY})")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """Return the entries of a bundle. Raises ValueError when it is cut short."""
    entries, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            raise ValueError("the entry bundle is cut short")
        entries.append(data[at + 2 : end])
        at = end
    return entries


class TreeBuilder:
    """The growing right edge of the tree: takes leaf hashes, hands out tiles that became full, knows the
    root.

    Holds at most 255 hashes a level. One thread at a time.
    """

    __slots__ = ("_edge", "size")

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        self.size = size
        self._edge: list[bytearray] = [bytearray(row) for row in edge]

    @classmethod
    def resume(cls, size: int, partials: dict[Tile, bytes]) -> TreeBuilder:
        """Continue a tree of `size` leaves from the bytes of its partial tiles. Raises ValueError if one
        lacks.
        """
        edge: list[bytes] = []
        level, count = 0, size
        while count:
            width = count % TILE_WIDTH
            data = b""
            if width:
                data = partials.get(Tile(level, count // TILE_WIDTH, width), b"")
                if len(data) != width * HASH_SIZE:
                    raise ValueError(f"the partial tile of level {level} is missing or of another width")
            edge.append(data)
            level, count = level + 1, count // TILE_WIDTH
        return cls(size, edge)

    def extend(self, leaves: bytes) -> list[tuple[Tile, bytes]]:
        """Append leaf hashes (a multiple of 32 bytes) and return the tiles that became full, lowest first."""
        full: list[tuple[Tile, bytes]] = []
        if not leaves:
            return full
        if not self._edge:
            self._edge.append(bytearray())
        edge, at = self._edge[0], 0
        size = self.size
        while at < len(leaves):
            take = min(TILE_WIDTH * HASH_SIZE - len(edge), len(leaves) - at)
            edge += leaves[at : at + take]
            at += take
            size += take // HASH_SIZE
            if len(edge) == TILE_WIDTH * HASH_SIZE:
                full.append((Tile(0, size // TILE_WIDTH - 1), bytes(edge)))
                self._carry(1, size, full_tile_root(edge), full)
                edge.clear()
        self.size = size
        return full

    def _carry(self, level: int, size: int, root: bytes, full: list[tuple[Tile, bytes]]) -> None:
        if len(self._edge) == level:
            self._edge.append(bytearray())
        edge = self._edge[level]
        edge += root
        if len(edge) == TILE_WIDTH * HASH_SIZE:
            full.append((Tile(level, size // TILE_WIDTH ** (level + 1) - 1), bytes(edge)))
            self._carry(level + 1, size, full_tile_root(edge), full)
            edge.clear()

    def partials(self) -> list[tuple[Tile, bytes]]:
        """Return the partial tiles of the present size with their bytes."""
        return [
            (Tile(level, self.size // TILE_WIDTH ** (level + 1), len(edge) // HASH_SIZE), bytes(edge))
            for level, edge in enumerate(self._edge)
            if edge
        ]

    def root(self) -> bytes:
        """Return the root at the present size; up to 255 hashes a level."""
        carry: bytes | None = None
        for edge in self._edge:
            hashes = [bytes(edge[at : at + HASH_SIZE]) for at in range(0, len(edge), HASH_SIZE)]
            if carry is not None:
                hashes.append(carry)
            if hashes:
                carry = root_of(hashes)
        return EMPTY_ROOT if carry is None else carry

    def copy(self) -> TreeBuilder:
        """Return an independent copy."""
        return TreeBuilder(self.size, [bytes(edge) for edge in self._edge])
