"""The Merkle tree over the trail: roots, inclusion and consistency proofs, and their verification.

Pure arithmetic over hashes, as RFC 9162 section 2.1 defines it (SHA-256, leaf prefix 0x00, node prefix 0x01).
Proofs are made from any source of complete-subtree hashes, so the same code runs over stored tiles and over a
list.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()
"""The root of the tree with no leaves."""


class Nodes(Protocol):
    """A source of the hashes of complete subtrees."""

    def node(self, level: int, index: int) -> bytes:
        """Return the hash of leaves `[index << level, (index + 1) << level)`.

        Raises LookupError if not held.
        """


class ProofError(ValueError):
    """A proof does not show what it claims; the text says which part failed."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of one log entry (a journal line without its newline)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node over its two children."""
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over consecutive subtree hashes of equal size; the last one may be of a smaller
    subtree.

    `root_of([])` is the root of the empty tree.
    """
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        odd = row[-1] if len(row) & 1 else None
        pairs = iter(row)
        row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
        if odd is not None:
            row.append(odd)
    return row[0]


class LeafList:
    """`Nodes` over leaf hashes in memory; for tests, small logs and offline bundles."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._rows: list[list[bytes]] = [list(leaves)]

    def node(self, level: int, index: int) -> bytes:
        while len(self._rows) <= level:
            row = self._rows[-1]
            self._rows.append([node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)])
        try:
            return self._rows[level][index]
        except IndexError:
            raise LookupError(f"no complete subtree at level {level}, index {index}") from None


def range_root(nodes: Nodes, start: int, end: int) -> bytes:
    """Return the Merkle tree hash of leaves `[start, end)`; `start` must be a multiple of the span's power of
    two.
    """
    count = end - start
    if count <= 0:
        return EMPTY_ROOT
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return nodes.node(level, start >> level)
    split = 1 << ((count - 1).bit_length() - 1)
    return node_hash(range_root(nodes, start, start + split), range_root(nodes, start + split, end))


def tree_root(nodes: Nodes, size: int) -> bytes:
    """Return the root of the tree of the first `size` leaves."""
    return range_root(nodes, 0, size)


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves, the leaf's sibling first."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    start, end = 0, size
    path: list[tuple[int, int]] = []
    while end - start > 1:
        split = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < split:
            path.append((split, end))
            end = split
        else:
            path.append((start, split))
            start = split
    return [range_root(nodes, low, high) for low, high in reversed(path)]


def consistency_proof(nodes: Nodes, old: int, new: int) -> list[bytes]:
    """Return the proof that the tree of `new` leaves extends the one of `old`; empty for `old` 0 or equal
    sizes.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves does not extend one of {old}")
    if old in (0, new):
        return []
    start, end, whole = 0, new, True
    path: list[tuple[int, int]] = []
    while old != end:
        split = start + (1 << ((end - start - 1).bit_length() - 1))
        if old <= split:
            path.append((split, end))
            end = split
        else:
            path.append((start, split))
            start = split
            whole = False
    if not whole:
        path.append((start, end))
    return [range_root(nodes, low, high) for low, high in reversed(path)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` (a leaf hash) is entry `index` of the tree (RFC 9162 section 2.1.3.2). Raises
    ProofError.
    """
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} is not in a tree of {size} leaves")
    position, last, current = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if position & 1 or position == last:
            current = node_hash(sibling, current)
            while not position & 1 and position != 0:
                position >>= 1
                last >>= 1
        else:
            current = node_hash(current, sibling)
        position >>= 1
        last >>= 1
    if last != 0:
        raise ProofError("the inclusion proof is too short")
    if current != root:
        raise ProofError(f"the inclusion proof of leaf {index} does not lead to the root of size {size}")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree (`new`, `new_root`) extends (`old`, `old_root`), RFC 9162 section 2.1.4.2.

    Raises ProofError. An empty old tree is extended by every tree, with an empty proof.
    """
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves does not extend one of {old}")
    if old == new:
        if proof:
            raise ProofError("the consistency proof between equal sizes must be empty")
        if old_root != new_root:
            raise ProofError(f"two different roots at the same size {old}")
        return
    if old == 0:
        if proof:
            raise ProofError("the consistency proof from the empty tree must be empty")
        if old_root != EMPTY_ROOT:
            raise ProofError("the old root is not the root of the empty tree")
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the consistency proof is too short")
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    first = second = path[0]
    for step in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if position & 1 or position == last:
            first = node_hash(step, first)
            second = node_hash(step, second)
            while not position & 1 and position != 0:
                position >>= 1
                last >>= 1
        else:
            second = node_hash(second, step)
        position >>= 1
        last >>= 1
    if last != 0:
        raise ProofError("the consistency proof is too short")
    if first != old_root:
        raise ProofError(f"the consistency proof does not lead to the old root of size {old}")
    if second != new_root:
        raise ProofError(f"the consistency proof does not lead to the new root of size {new}")
