"""Forward security: one signing key per epoch, each handed over to the next by a record in the trail itself.

Pure: the texts of the opening and of the hand-overs, what they prove, and when an epoch is over. An epoch is
counted in records and in running time, never by the wall clock. Old keys are destroyed, so whoever steals the
present key cannot seal anything that stands before the last hand-over.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import attrs
import msgspec

from deia_audit.notes import ED25519, Note, NoteError, Signer, VerifierKey, b64, decimal, parse_note, sign_note, unb64

OPENING = "deia-audit-opening/v1"
SEAL = "deia-audit-seal/v1"
OPENED_ACTION = "audit.opened"
SEALED_ACTION = "audit.sealed"
FINGERPRINT = 16
"""Hexadecimal digits of the fingerprint at an origin's end."""


def fingerprint(log_public: bytes, first_epoch_public: bytes) -> str:
    """Return the fingerprint that ties an origin to its fixed key and to the key of its first epoch."""
    return sha256(b"deia-audit-origin\n" + log_public + first_epoch_public).hexdigest()[:FINGERPRINT]


def make_origin(base: str, log_public: bytes, first_epoch_public: bytes) -> str:
    """Return the origin of a new log under `base`, a name as `audit.example.com`."""
    return f"{base}/{fingerprint(log_public, first_epoch_public)}"


def epoch_name(origin: str, epoch: int) -> str:
    """Return the key name of an epoch."""
    return f"{origin}/epoch/{epoch}"


def epoch_of(name: str, origin: str) -> int | None:
    """Return the epoch that a key name belongs to, or None for another key."""
    prefix = f"{origin}/epoch/"
    number = name.removeprefix(prefix)
    try:
        return decimal(number) if name.startswith(prefix) else None
    except NoteError:
        return None


@attrs.frozen(slots=True)
class PreviousHead:
    """The head of the log that a new one follows, as far as it is known."""

    origin: str
    size: int
    root: bytes


@attrs.frozen(slots=True)
class Opening:
    """The first statement of a log: its origin, its fixed key, the key of epoch 0, and the log it follows."""

    origin: str
    log_key: VerifierKey
    first: VerifierKey
    previous: PreviousHead | None = None

    @property
    def text(self) -> str:
        lines = [OPENING, self.origin, f"log {self.log_key}", f"epoch 0 {self.first}"]
        if self.previous is not None:
            lines.append(f"previous {self.previous.size} {b64(self.previous.root)} {self.previous.origin}")
        return "\n".join(lines) + "\n"

    def sign(self, log: Signer, first: Signer) -> str:
        """Return the opening as a note signed by both keys."""
        return sign_note(self.text, [log, first])

    @classmethod
    def parse(cls, text: str) -> Opening:
        """Read a signed opening and check both signatures and the fingerprint. Raises NoteError."""
        note = parse_note(text)
        lines = note.text.split("\n")
        if len(lines) not in (5, 6) or lines[0] != OPENING or lines[-1]:
            raise NoteError("not an opening of an audit log")
        origin = lines[1]
        log_key = VerifierKey.parse(_after(lines[2], "log "))
        first = VerifierKey.parse(_after(lines[3], "epoch 0 "))
        previous = None
        if len(lines) == 6:
            parts = _after(lines[4], "previous ").split(" ", 2)
            if len(parts) != 3:
                raise NoteError("the head of the previous log is written: size, root, origin")
            previous = PreviousHead(parts[2], decimal(parts[0]), unb64(parts[1]))
        if len(note.verify([log_key, first])) != 2:
            raise NoteError("the opening is not signed by both of its keys")
        if log_key.name != origin or first.name != epoch_name(origin, 0):
            raise NoteError("the opening's keys are not named after its origin")
        if origin.rpartition("/")[2] != fingerprint(log_key.public, first.public):
            raise NoteError("the origin's fingerprint is not that of its keys")
        return cls(origin, log_key, first, previous)


@attrs.frozen(slots=True)
class Seal:
    """A hand-over: the tree's root at `size` when `epoch` ended, and the key of the next epoch."""

    origin: str
    epoch: int
    size: int
    root: bytes
    next: VerifierKey

    @property
    def text(self) -> str:
        lines = (
            SEAL,
            self.origin,
            f"epoch {self.epoch}",
            str(self.size),
            b64(self.root),
            f"next {self.next}",
        )
        return "\n".join(lines) + "\n"

    def sign(self, present: Signer) -> str:
        """Return the seal as a note signed by the key of the epoch that ends."""
        return sign_note(self.text, [present])

    @classmethod
    def parse(cls, text: str) -> tuple[Seal, Note]:
        """Read a signed seal; the signature is checked by `SealChain`. Raises NoteError."""
        note = parse_note(text)
        lines = note.text.split("\n")
        if len(lines) != 7 or lines[0] != SEAL or lines[-1]:
            raise NoteError("not a seal of an audit log")
        epoch, size = decimal(_after(lines[2], "epoch ")), decimal(lines[3])
        root = unb64(lines[4])
        if len(root) != 32:
            raise NoteError("a seal's root is 32 bytes")
        return cls(lines[1], epoch, size, root, VerifierKey.parse(_after(lines[5], "next "))), note


@attrs.frozen(slots=True)
class Statement:
    """One line of the copies beside the log: the opening (`seq` -1), or the seal that record `seq` holds."""

    seq: int
    text: str

    @property
    def opening(self) -> bool:
        return self.seq < 0

    def encode(self) -> bytes:
        """Return the line, its newline included."""
        told = {"opening": self.text} if self.opening else {"seq": self.seq, "seal": self.text}
        return msgspec.json.encode(told) + b"\n"


def parse_statements(data: bytes) -> list[Statement]:
    """Read the copies; every line must be as `encode` writes it. Raises NoteError."""
    found = []
    for line in data.splitlines(keepends=True):
        try:
            told = msgspec.json.decode(line, type=dict[str, str | int])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise NoteError("a statement can't be read") from None
        seq, text = told.get("seq", -1), told.get("opening", told.get("seal"))
        if not isinstance(seq, int) or not isinstance(text, str) or Statement(seq, text).encode() != line:
            raise NoteError("a statement is not as it was written")
        found.append(Statement(seq, text))
    return found


def _after(line: str, prefix: str) -> str:
    if not line.startswith(prefix):
        raise NoteError(f"a line should begin with {prefix!r}")
    return line.removeprefix(prefix)


class SealChain:
    """Follows the hand-overs of one log, in the order of its records, and knows the key of each epoch."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.keys: list[VerifierKey] = [opening.first]
        self.seals: list[tuple[int, Seal]] = []

    @property
    def epoch(self) -> int:
        """The epoch that is open after the seals seen so far."""
        return len(self.keys) - 1

    def add(self, seq: int, text: str) -> Seal:
        """Take the seal that record `seq` holds.

        Raises NoteError when it does not follow; nothing is kept then.
        """
        seal, note = Seal.parse(text)
        if seal.origin != self.opening.origin:
            raise NoteError(f"the seal is of log {seal.origin!r}")
        if seal.epoch != self.epoch:
            raise NoteError(f"the seal is of epoch {seal.epoch}, where that of epoch {self.epoch} is due")
        if seal.size > seq or (self.seals and seal.size <= self.seals[-1][1].size):
            raise NoteError(f"the seal of epoch {seal.epoch} covers {seal.size} records, which cannot be")
        if seal.next.name != epoch_name(seal.origin, seal.epoch + 1) or seal.next.kind != ED25519:
            raise NoteError(f"the seal of epoch {seal.epoch} hands over to a key of another name")
        note.verify([self.keys[-1]])
        self.keys.append(seal.next)
        self.seals.append((seq, seal))
        return seal

    def epoch_at(self, size: int) -> int:
        """Return the epoch whose key signs a checkpoint of `size` records: the seals among those records."""
        return sum(1 for seq, _seal in self.seals if seq < size)

    def check_head(self, note: Note, size: int) -> None:
        """Check that a checkpoint of `size` is signed by the key of the epoch that was open there.

        NoteError.
        """
        key = self.keys[self.epoch_at(size)]
        for signature in note.signatures:
            other = epoch_of(signature.name, self.opening.origin)
            if other is not None and (signature.name, signature.id) != (key.name, key.id):
                raise NoteError(f"a head of {size} records is signed by the key of epoch {other}, not of {key.name}")
        note.verify([key])


@attrs.frozen(slots=True)
class EpochPolicy:
    """When an epoch ends: after so many records, or so many seconds of running with at least one record."""

    records: int
    seconds: float

    def over(self, records: int, running: float) -> bool:
        return records > 0 and (records >= self.records or running >= self.seconds)


def verify_roots(chain: SealChain, roots: Sequence[tuple[int, bytes]]) -> Seal | None:
    """Return the first seal whose root differs from the one in `roots` (size, root), or None."""
    known = dict(roots)
    for _seq, seal in chain.seals:
        if seal.size in known and known[seal.size] != seal.root:
            return seal
    return None
