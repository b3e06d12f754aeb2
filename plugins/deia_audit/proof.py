"""Offline proofs in the C2SP tlog-proof format: one entry, its path, the checkpoint, in one text.

Pure. Checking needs the entry's bytes, the proof and the keys that the reader trusts, and nothing of this
home.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from deia_audit.checkpoint import Checkpoint, open_checkpoint
from deia_audit.notes import NoteError, VerifierKey, b64, decimal, unb64
from deia_audit.tree import ProofError, leaf_hash, verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PATH = 63


@attrs.frozen(slots=True)
class TlogProof:
    """That entry `index` is in the tree of `checkpoint`: the audit path, and optional opaque `extra` data."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint
    extra: bytes = b""

    def __str__(self) -> str:
        lines = [HEADER]
        if self.extra:
            lines.append(f"extra {b64(self.extra)}")
        lines.append(f"index {self.index}")
        lines += [b64(step) for step in self.path]
        return "\n".join(lines) + "\n\n" + str(self.checkpoint)

    @classmethod
    def parse(cls, data: bytes | str) -> TlogProof:
        """Read a proof; nothing is verified here. Raises NoteError."""
        try:
            text = data.decode() if isinstance(data, bytes) else data
        except UnicodeDecodeError:
            raise NoteError("a proof is UTF-8 text") from None
        top, blank, rest = text.partition("\n\n")
        lines = top.split("\n")
        if not blank or lines[0] != HEADER:
            raise NoteError(f"a proof begins with {HEADER}")
        del lines[0]
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = unb64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise NoteError("a proof names the entry's index")
        index = decimal(lines.pop(0).removeprefix("index "))
        path = tuple(unb64(line) for line in lines)
        if len(path) > MAX_PATH or any(len(step) != 32 for step in path):
            raise NoteError(f"a proof's path is at most {MAX_PATH} hashes of 32 bytes")
        return cls(index, path, Checkpoint.parse(rest), extra)


def check_proof(
    entry: bytes, proof: TlogProof, log_keys: Sequence[VerifierKey], witness_keys: Sequence[VerifierKey] = ()
) -> list[tuple[VerifierKey, int]]:
    """Check that `entry` is logged as `proof` says, under one of `log_keys`.

    Returns the `witness_keys` that cosigned, each with its Unix time; how many are enough is the reader's to
    say. Raises NoteError for the signatures, ProofError for the path.
    """
    checkpoint = open_checkpoint(str(proof.checkpoint), log_keys)
    verify_inclusion(leaf_hash(entry), proof.index, checkpoint.head.size, proof.path, checkpoint.head.root)
    return checkpoint.witnesses(witness_keys)


__all__ = ["HEADER", "NoteError", "ProofError", "TlogProof", "check_proof"]
