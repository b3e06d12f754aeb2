"""The tree's laws, and the published vectors of RFC 6962's reference implementation."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_audit.tree import (
    EMPTY_ROOT,
    LeafList,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots of certificate-transparency's merkletree tests.
VECTOR_LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
VECTOR_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(naive_root(leaves[:k]), naive_root(leaves[k:]))


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(count)]


@pytest.mark.parametrize("size", range(1, 9))
def test_published_roots(size: int) -> None:
    nodes = LeafList([leaf_hash(leaf) for leaf in VECTOR_LEAVES[:size]])
    assert tree_root(nodes, size).hex() == VECTOR_ROOTS[size - 1]


def test_published_proofs() -> None:
    nodes = LeafList([leaf_hash(leaf) for leaf in VECTOR_LEAVES])
    assert [step.hex() for step in inclusion_proof(nodes, 5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [step.hex() for step in consistency_proof(nodes, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(st.integers(0, 300))
def test_the_root_is_the_definitions(size: int) -> None:
    leaves = leaves_of(size)
    assert tree_root(LeafList(leaves), size) == naive_root(leaves) == root_of(leaves)


@given(st.data())
def test_every_inclusion_proof_verifies_and_no_other_leaf_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    nodes = LeafList(leaves_of(size))
    root, proof = tree_root(nodes, size), inclusion_proof(nodes, index, size)
    verify_inclusion(nodes.node(0, index), index, size, proof, root)
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
    with pytest.raises(ProofError):
        verify_inclusion(nodes.node(0, index), index, size, [*proof, root], root)
    if proof:
        with pytest.raises(ProofError):
            verify_inclusion(nodes.node(0, index), index, size, proof[:-1], root)


@given(st.data())
def test_every_consistency_proof_verifies_and_a_fork_does_not(data: st.DataObject) -> None:
    new = data.draw(st.integers(0, 300))
    old = data.draw(st.integers(0, new))
    leaves = leaves_of(new)
    nodes = LeafList(leaves)
    proof = consistency_proof(nodes, old, new)
    verify_consistency(old, tree_root(nodes, old), new, tree_root(nodes, new), proof)
    if old:
        forked = [*leaves[: old - 1], leaf_hash(b"fork")]
        with pytest.raises(ProofError):
            verify_consistency(old, naive_root(forked), new, tree_root(nodes, new), proof)
    if proof:
        with pytest.raises(ProofError):
            verify_consistency(old, tree_root(nodes, old), new, tree_root(nodes, new), proof[:-1])


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    assert tree_root(LeafList([]), 0) == EMPTY_ROOT
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    with pytest.raises(ProofError):
        verify_consistency(3, b"a" * 32, 2, b"b" * 32, [])
