"""Signed notes, checkpoints, proofs and the witness's decision, with the published examples where there are
any.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deia_audit.checkpoint import Checkpoint, TreeHead, open_checkpoint, sign_checkpoint
from deia_audit.notes import (
    COSIGNATURE_V1,
    ED25519,
    NoteError,
    Signer,
    VerifierKey,
    b64,
    parse_note,
    parse_signature_line,
    sign_note,
)
from deia_audit.proof import TlogProof, check_proof
from deia_audit.seal import SEAL, Seal, epoch_of
from deia_audit.tree import LeafList, ProofError, consistency_proof, inclusion_proof, leaf_hash, tree_root
from deia_audit.witness import AddCheckpoint, decide

# golang.org/x/mod/sumdb/note's documented example.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6K"
    "E6RyyBwJnAM=\n"
)


def signer(name: str = "log.example/a", kind: int = ED25519, seed: int = 1) -> Signer:
    return Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), kind)


def test_the_go_implementations_example_verifies() -> None:
    key = VerifierKey.parse(GO_VKEY)
    assert str(key) == GO_VKEY
    assert parse_note(GO_NOTE).verify([key]) == [key]
    assert str(parse_note(GO_NOTE)) == GO_NOTE


def test_a_changed_text_is_refused() -> None:
    with pytest.raises(NoteError, match="wrong"):
        parse_note(GO_NOTE.replace("answer", "anwser")).verify([VerifierKey.parse(GO_VKEY)])


def test_unknown_signatures_are_ignored_and_alone_are_not_enough() -> None:
    mine, other = signer(), signer("other", seed=2)
    note = parse_note(sign_note("text\n", [other, mine]))
    assert note.verify([mine.verifier]) == [mine.verifier]
    with pytest.raises(NoteError, match="no signature"):
        parse_note(sign_note("text\n", [other])).verify([mine.verifier])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\tb", "a\u00a0b"])
def test_a_key_name_without_room_for_doubt(name: str) -> None:
    with pytest.raises(NoteError):
        signer(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x\n\n",
        "x\n\n— a b\n",
        "x\r\n\n— a AAAAAAAA\n",
        "x\n\n- a AAAAAAAA\n",
        "x\n\n— a AAAAAAAB=\n",
    ],
)
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        parse_note(text)


@pytest.mark.parametrize(
    "text", ["a\n1\n", "a\n01\nAAAA\n", "\n1\nx\n", "a\n-1\nAA==\n", "a\n1\nAAAA\n", "a\n1\nAA\n\nb\n"]
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        TreeHead.parse(text)


def test_a_checkpoint_is_of_its_log_and_signed_by_its_key() -> None:
    head = TreeHead("log.example/a", 7, b"r" * 32)
    data = str(sign_checkpoint(head, [signer()]))
    assert open_checkpoint(data, [signer().verifier], "log.example/a").head == head
    with pytest.raises(NoteError, match="not of"):
        open_checkpoint(data, [signer().verifier], "log.example/b")
    with pytest.raises(NoteError):
        open_checkpoint(data, [signer(seed=3).verifier])


def test_a_cosignature_carries_its_time() -> None:
    witness = signer("witness.example/w", COSIGNATURE_V1, seed=9)
    checkpoint = sign_checkpoint(TreeHead("log.example/a", 7, b"r" * 32), [signer()])
    line = parse_signature_line(witness.line(checkpoint.note.text, 1679315147)[:-1])
    both = checkpoint.with_signatures([line])
    assert both.witnesses([witness.verifier]) == [(witness.verifier, 1679315147)]
    late = parse_signature_line(witness.line(checkpoint.note.text, 1 << 63)[:-1])
    with pytest.raises(NoteError, match="time"):
        checkpoint.with_signatures([late]).witnesses([witness.verifier])
    forged = Checkpoint.parse(str(both).replace("\n7\n", "\n8\n"))
    with pytest.raises(NoteError):
        forged.witnesses([witness.verifier])


def test_a_proof_is_checked_offline() -> None:
    entries = [b"entry %d" % number for number in range(300)]
    nodes = LeafList([leaf_hash(entry) for entry in entries])
    checkpoint = sign_checkpoint(TreeHead("log.example/a", 300, tree_root(nodes, 300)), [signer()])
    proof = TlogProof.parse(str(TlogProof(41, tuple(inclusion_proof(nodes, 41, 300)), checkpoint, b"extra")))
    assert proof.extra == b"extra"
    assert check_proof(entries[41], proof, [signer().verifier]) == []
    with pytest.raises(ProofError):
        check_proof(entries[42], proof, [signer().verifier])
    with pytest.raises(NoteError):
        check_proof(entries[41], proof, [signer(seed=2).verifier])


def test_the_witness_follows_the_log_and_refuses_what_does_not_extend_it() -> None:
    log, witness = signer(), signer("witness.example/w", COSIGNATURE_V1, seed=9)
    logs = {"log.example/a": [log.verifier]}
    nodes = LeafList([leaf_hash(b"%d" % number) for number in range(20)])

    def ask(old: int, size: int, proof: list[bytes], root: bytes | None = None, by: Signer = log) -> AddCheckpoint:
        head = TreeHead("log.example/a", size, root or tree_root(nodes, size))
        return AddCheckpoint.parse(AddCheckpoint(old, tuple(proof), sign_checkpoint(head, [by])).encode())

    first = decide(ask(0, 5, []), None, logs, witness, 1000)
    assert first.status == 200
    assert first.keep is not None
    line = parse_signature_line(first.body.decode()[:-1])
    witness.verifier.check(first.keep.text, line.blob)

    assert decide(ask(5, 20, consistency_proof(nodes, 5, 20)), first.keep, logs, witness, 1001).status == 200
    assert decide(ask(5, 5, []), first.keep, logs, witness, 1001).status == 200
    conflict = decide(ask(3, 20, []), first.keep, logs, witness, 1001)
    assert (conflict.status, conflict.body, conflict.content_type) == (409, b"5\n", "text/x.tlog.size")
    assert decide(ask(5, 5, [], b"x" * 32), first.keep, logs, witness, 1001).status == 409
    assert decide(ask(5, 20, [], b"x" * 32), first.keep, logs, witness, 1001).status == 422
    assert decide(ask(6, 5, []), first.keep, logs, witness, 1001).status == 400
    assert decide(ask(0, 5, [], by=signer(seed=4)), None, logs, witness, 1001).status == 403
    assert decide(ask(0, 5, []), None, {}, witness, 1001).status == 404
    assert decide(ask(0, 5, [b"h" * 32]), None, logs, witness, 1001).status == 422


@pytest.mark.parametrize("body", [b"", b"old 1", b"old -1\n\nx", b"old 01\n\nx", b"new 1\n\nx", b"\xff\n\n"])
def test_what_is_no_add_checkpoint_is_refused(body: bytes) -> None:
    with pytest.raises(NoteError):
        AddCheckpoint.parse(body)


HUGE = "9" * 5000
"""More digits than Python makes a number of."""


@pytest.mark.parametrize("number", [HUGE, "9" * 20, "٣", "²", "01", "", "+1", "-1", "1_0"])
def test_what_is_no_number_of_these_formats_is_refused_in_each(number: str) -> None:
    note = str(sign_checkpoint(TreeHead("log.example/a", 7, b"r" * 32), [signer()]))
    with pytest.raises(NoteError):
        Checkpoint.parse(note.replace("\n7\n", f"\n{number}\n"))
    with pytest.raises(NoteError):
        AddCheckpoint.parse(f"old {number}\n\n{note}".encode())
    with pytest.raises(NoteError):
        TlogProof.parse(f"c2sp.org/tlog-proof@v1\nindex {number}\n\n{note}")
    with pytest.raises(NoteError):
        Seal.parse(sign_note(f"{SEAL}\nlog.example/a\nepoch {number}\n7\n{b64(bytes(32))}\nnext x\n", [signer()]))
    assert epoch_of(f"log.example/a/epoch/{number}", "log.example/a") is None
