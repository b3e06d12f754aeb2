"""Who gets the new version: a keyed hash for those who can be told apart, permuted blocks for those who can't.

Raising the weight only moves keys from old to new, because a key's bucket never changes within a rollout
(`deia_hardening.sharding.bucket` with the rollout's salt). Requests without a key are dealt out in blocks of 100
that hold exactly the share they should, in an order nobody can guess, so no stretch of them is far off.
"""

from __future__ import annotations

import math
import random
from hashlib import sha512
from itertools import count
from struct import Struct

from deia_hardening.sharding import sha256

_first8 = Struct(">Q").unpack_from
_SCALE = 2.0**-53

BLOCK = 100
"""Requests without a key are dealt in blocks of this size; any stretch is off by at most a quarter of it."""

_ROWS = 10


def _pool() -> tuple[tuple[int, ...], ...]:
    shuffler = random.Random("deia_migration.split")
    rows = []
    for _ in range(256):
        row = list(range(_ROWS))
        shuffler.shuffle(row)
        rows.append(tuple(row))
    return tuple(rows)


_POOL = _pool()


def ranks(seed: bytes, block: int) -> tuple[int, ...]:
    """Return the order of one block: a permutation of 0…99, the same for the same seed and block.

    Every ten neighbours hold one rank of each decile, so the share of any stretch stays near the weight: a
    prefix is off by at most 6 requests, any stretch by at most 12, at every weight. Two of SHA-512's bytes
    turn each row, so that a position's rank is uniform.
    """
    noise = sha512(seed + block.to_bytes(8, "big")).digest()
    units = []
    for decile in range(_ROWS):
        turn = (noise[3 * decile] << 8 | noise[3 * decile + 1]) % _ROWS
        units.append([(value + turn) % _ROWS for value in _POOL[noise[3 * decile + 2]]])
    found = []
    for row in range(_ROWS):
        at = 30 + 3 * row
        turn = (noise[at] << 8 | noise[at + 1]) % _ROWS
        for value in _POOL[noise[at + 2]]:
            decile = (value + turn) % _ROWS
            found.append(_ROWS * decile + units[decile][row])
    return tuple(found)


class Blocks:
    """Deals requests without a key: `new(weight)` says whether this one goes to the new version.

    One per worker. Each request's probability is the weight; any stretch of requests at one weight is off by
    at most 25, always (12 within what the order allows, 1 for a weight that is no whole percentage). Callable
    from several threads: the counter is one C call, a block is computed from its number alone.
    """

    __slots__ = ("_dealt", "_next", "_offset", "_seed")

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode("utf-8", "surrogatepass")
        self._offset = bucket_of(self._seed, b"blocks\x00")
        self._next = count().__next__
        self._dealt: tuple[int, float, tuple[bool, ...]] = (-1, 0.0, ())

    def new(self, weight: float) -> bool:
        """Whether the next request goes to the new version; `weight` in [0, 1]."""
        block, position = divmod(self._next(), BLOCK)
        known, at, dealt = self._dealt
        if known != block or at != weight:
            dealt = self._deal(block, weight)
        return dealt[position]

    def _deal(self, block: int, weight: float) -> tuple[bool, ...]:
        # How many of this block: the steps of a line of slope `weight`, begun at a random height, so that a
        # weight of 0.5% gives one in every second block and the sum is never off by more than one.
        start = weight * BLOCK * block + self._offset
        share = math.floor(start + weight * BLOCK) - math.floor(start)
        if weight >= 1.0:
            share = BLOCK
        elif weight <= 0.0:
            share = 0
        dealt = tuple(rank < share for rank in ranks(self._seed, block))
        self._dealt = (block, weight, dealt)
        return dealt


def bucket_of(key: bytes, prefix: bytes) -> float:
    """`sharding.bucket` with the salt and its zero byte already joined (`prefix`): the request path's form."""
    return (_first8(sha256(prefix + key).digest())[0] >> 11) * _SCALE  # type: ignore[no-any-return]


class Split:
    """One rollout's split: fixed salt, moving weight. Reading it costs no lock and no I/O.

    A fresh salt for each rollout keeps the same users from being first every time.

    >>> split = Split("rollout-7")
    >>> split.new("conversation-12", 0.0), split.new("conversation-12", 1.0)
    (False, True)
    """

    __slots__ = ("_blocks", "_prefix", "salt")

    def __init__(self, salt: str, seed: str = "") -> None:
        """`salt` names the rollout; `seed` (a worker's own) orders the requests without a key."""
        self.salt = salt
        self._prefix = salt.encode("utf-8", "surrogatepass") + b"\x00"
        self._blocks = Blocks(f"{salt}\x00{seed}")

    def new(self, key: str | bytes | None, weight: float) -> bool:
        """Whether `key` belongs to the new version at `weight` in [0, 1]; None is dealt by blocks."""
        if key is None:
            return self._blocks.new(weight)
        if isinstance(key, str):
            key = key.encode("utf-8", "surrogatepass")
        (value,) = _first8(sha256(self._prefix + key).digest())
        return bool((value >> 11) * _SCALE < weight)
