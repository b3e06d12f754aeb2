"""A witness: cosigns a log's checkpoints as long as each extends the one before (C2SP tlog-witness, add-
checkpoint).

Pure: what a request leads to is decided here from the log's last cosigned head; who keeps that head durable
and serves HTTP is `witness_server`, who asks a witness is `witness_client`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from deia_audit.checkpoint import Checkpoint, TreeHead
from deia_audit.notes import NoteError, Signer, VerifierKey, b64, decimal, unb64
from deia_audit.tree import EMPTY_ROOT, ProofError, verify_consistency

MAX_PROOF_LINES = 63
SIZE_TYPE = "text/x.tlog.size"


@attrs.frozen(slots=True)
class AddCheckpoint:
    """The request: the size that the log believes the witness saw last, the proof from there, the checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Checkpoint

    def encode(self) -> bytes:
        lines = [f"old {self.old}", *(b64(step) for step in self.proof)]
        return ("\n".join(lines) + "\n\n" + str(self.checkpoint)).encode()

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Read a request body. Raises NoteError."""
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise NoteError("the request is UTF-8 text") from None
        top, blank, rest = text.partition("\n\n")
        first, *lines = top.split("\n")
        if not blank or not first.startswith("old "):
            raise NoteError("the request begins with: old <size>")
        old = decimal(first.removeprefix("old "))
        if len(lines) > MAX_PROOF_LINES:
            raise NoteError(f"a consistency proof has at most {MAX_PROOF_LINES} lines")
        proof = tuple(unb64(line) for line in lines)
        if any(len(step) != 32 for step in proof):
            raise NoteError("a consistency proof is lines of 32-byte hashes")
        return cls(old, proof, Checkpoint.parse(rest))


@attrs.frozen(slots=True)
class WitnessAnswer:
    """What to answer, and the head to keep durable before the answer leaves (None: nothing to keep)."""

    status: int
    body: bytes
    keep: TreeHead | None = None
    content_type: str = "text/plain; charset=utf-8"


def decide(
    request: AddCheckpoint,
    last: TreeHead | None,
    logs: Mapping[str, Sequence[VerifierKey]],
    signer: Signer,
    now: int,
) -> WitnessAnswer:
    """Answer an add-checkpoint request, given the last head that was cosigned for its origin.

    `logs` holds the trusted keys by origin; `now` is Unix seconds. The order of checks is the
    specification's.
    """
    head = request.checkpoint.head
    keys = logs.get(head.origin)
    if keys is None:
        return WitnessAnswer(404, b"unknown log origin\n")
    try:
        request.checkpoint.note.verify(keys)
    except NoteError as error:
        return WitnessAnswer(403, f"{error}\n".encode())
    if request.old > head.size:
        return WitnessAnswer(400, b"the old size is larger than the checkpoint's\n")
    known = last.size if last is not None else 0
    if request.old != known:
        return WitnessAnswer(409, f"{known}\n".encode(), content_type=SIZE_TYPE)
    seen = last.root if last is not None else EMPTY_ROOT
    if known == head.size and seen != head.root:
        return WitnessAnswer(409, f"{known}\n".encode(), content_type=SIZE_TYPE)
    if known == 0 and request.proof:
        return WitnessAnswer(422, b"the consistency proof from size 0 must be empty\n")
    if last is not None and known > 0:
        try:
            verify_consistency(last.size, last.root, head.size, head.root, request.proof)
        except ProofError as error:
            return WitnessAnswer(422, f"{error}\n".encode())
    keep = TreeHead(head.origin, head.size, head.root)
    return WitnessAnswer(200, signer.line(head.text, now).encode(), keep)
