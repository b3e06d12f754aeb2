"""Checkpoints: the signed head of the tree (origin, size, root), as C2SP tlog-checkpoint defines them.

Pure. The format leaves room for extension lines; this log writes none, since no monitor can audit them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from deia_audit.notes import (
    COSIGNATURE_V1,
    ED25519,
    Note,
    NoteError,
    Signature,
    Signer,
    VerifierKey,
    b64,
    decimal,
    parse_note,
    sign_note,
    unb64,
)


@attrs.frozen(slots=True)
class TreeHead:
    """What a checkpoint states: that log `origin` had, at `size` entries, this root (32 bytes)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note text that is signed."""
        lines = (self.origin, str(self.size), b64(self.root), *self.extensions)
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> TreeHead:
        """Read the text of a checkpoint. Raises NoteError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise NoteError("a checkpoint is at least three non-empty lines: origin, size, root")
        origin, size, root, *extensions = lines[:-1]
        decoded = unb64(root)
        if len(decoded) != 32:
            raise NoteError("a checkpoint's root is 32 bytes")
        return cls(origin, decimal(size), decoded, tuple(extensions))


@attrs.frozen(slots=True)
class Checkpoint:
    """A tree head with the note that carries it."""

    head: TreeHead
    note: Note

    def __str__(self) -> str:
        return str(self.note)

    @classmethod
    def parse(cls, data: bytes | str) -> Checkpoint:
        """Read a signed checkpoint; its signatures are not verified here. Raises NoteError."""
        note = parse_note(data)
        return cls(TreeHead.parse(note.text), note)

    def with_signatures(self, extra: Sequence[Signature]) -> Checkpoint:
        """Return the checkpoint with more signature lines behind its own, each only once."""
        have = {(signature.name, signature.id) for signature in self.note.signatures}
        new = tuple(one for one in extra if (one.name, one.id) not in have)
        return Checkpoint(self.head, Note(self.note.text, self.note.signatures + new))

    def witnesses(self, keys: Iterable[VerifierKey]) -> list[tuple[VerifierKey, int]]:
        """Return the witness keys among `keys` that cosigned, each with its time. A wrong cosignature:
        NoteError.
        """
        cosigners = [key for key in keys if key.kind == COSIGNATURE_V1]
        found = []
        for signature in self.note.signatures:
            for key in cosigners:
                if (key.name, key.id) == (signature.name, signature.id):
                    key.check(self.note.text, signature.blob)
                    found.append((key, int.from_bytes(signature.blob[:8], "big")))
        return found


def sign_checkpoint(head: TreeHead, signers: Sequence[Signer]) -> Checkpoint:
    """Return the checkpoint of `head`, signed by the log's key (and further keys)."""
    return Checkpoint.parse(sign_note(head.text, signers))


def open_checkpoint(data: bytes | str, keys: Iterable[VerifierKey], origin: str | None = None) -> Checkpoint:
    """Return a checkpoint that one of the log's `keys` signed, of log `origin` if given. Raises NoteError."""
    checkpoint = Checkpoint.parse(data)
    if origin is not None and checkpoint.head.origin != origin:
        raise NoteError(f"the checkpoint is of log {checkpoint.head.origin!r}, not of {origin!r}")
    checkpoint.note.verify(key for key in keys if key.kind == ED25519)
    return checkpoint
