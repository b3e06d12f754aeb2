"""Signed notes: text under one or more Ed25519 signature lines, as C2SP signed-note defines them.

Pure apart from the signing key that the caller holds. Signatures by unknown keys are ignored, a wrong
signature by a known key refuses the whole note, a note without one good signature is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from hashlib import sha256

import attrs
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = 0x01
COSIGNATURE_V1 = 0x04
MAX_SIGNATURES = 64
MAX_NOTE = 256 * 1024
"""The longest note in bytes that is read."""


class NoteError(ValueError):
    """The text is no signed note, or its signatures do not carry it."""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def unb64(text: str) -> bytes:
    """Decode standard base64, strictly. Raises NoteError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError(f"not base64: {text[:80]!r}") from None
    if b64(data) != text:
        raise NoteError(f"not canonical base64: {text[:80]!r}")
    return data


def decimal(text: str) -> int:
    """Return a number as these formats write it: ASCII digits, no leading zeroes, below 10^19. Raises NoteError."""
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or (text[0] == "0" and text != "0"):
        raise NoteError(f"not a decimal number without leading zeroes: {text[:80]!r}")
    return int(text)


def check_name(name: str) -> str:
    """Return `name` if it can name a key: not empty, no spaces, no plus. Raises NoteError."""
    if not name or "+" in name or any(char.isspace() or ord(char) < 0x20 for char in name):
        raise NoteError(f"a key name must not be empty and holds no spaces and no '+': {name!r}")
    return name


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Return the 4-byte id of a key: SHA-256(name, newline, type byte, public key), cut."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


@attrs.frozen(slots=True)
class VerifierKey:
    """A public key with its name and signature type (`ED25519` or `COSIGNATURE_V1`)."""

    name: str = attrs.field(converter=check_name)
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        return key_id(self.name, self.kind, self.public)

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64(bytes([self.kind]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey, `name+id+base64`. Raises NoteError when a part is wrong or the id is not the key's."""
        name, first, rest = text.strip().partition("+")
        hexid, second, encoded = rest.partition("+")
        if not first or not second:
            raise NoteError("a verifier key is written name+id+key")
        data = unb64(encoded)
        if len(data) != 33 or data[0] not in (ED25519, COSIGNATURE_V1):
            raise NoteError("only Ed25519 keys (types 1 and 4, 32 bytes) are known")
        key = cls(name, data[0], data[1:])
        if key.id.hex() != hexid.lower() or len(hexid) != 8:
            raise NoteError(f"the id of verifier key {name!r} does not belong to its key")
        return key

    def check(self, text: str, blob: bytes) -> None:
        """Check a signature blob (behind its key id) over the note's text. Raises NoteError."""
        message = text.encode()
        if self.kind == COSIGNATURE_V1:
            if len(blob) != 72:
                raise NoteError(f"the cosignature of {self.name} has a wrong length")
            when = int.from_bytes(blob[:8], "big")
            if when >> 63:
                raise NoteError(f"the cosignature of {self.name} has a time beyond all times")
            message = cosigned_message(text, when)
            blob = blob[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob, message)
        except (InvalidSignature, ValueError):
            raise NoteError(f"the signature of {self.name}+{self.id.hex()} is wrong") from None


def cosigned_message(text: str, timestamp: int) -> bytes:
    """Return what a cosignature/v1 at `timestamp` (Unix seconds) signs."""
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


@attrs.frozen(slots=True)
class Signer:
    """A private Ed25519 key under a name; signs notes, and cosigns checkpoints when its kind says so."""

    name: str = attrs.field(converter=check_name)
    key: Ed25519PrivateKey = attrs.field(repr=False, eq=False)
    kind: int = ED25519

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(self.name, self.kind, self.key.public_key().public_bytes_raw())

    def line(self, text: str, timestamp: int | None = None) -> str:
        """Return the signature line over `text`; a cosigner needs the `timestamp` in Unix seconds."""
        if self.kind == COSIGNATURE_V1:
            if timestamp is None:
                raise ValueError("a cosignature carries a time")
            blob = timestamp.to_bytes(8, "big") + self.key.sign(cosigned_message(text, timestamp))
        else:
            blob = self.key.sign(text.encode())
        return f"— {self.name} {b64(self.verifier.id + blob)}\n"


@attrs.frozen(slots=True)
class Signature:
    """One signature line: the key's name, its 4-byte id and the blob behind it."""

    name: str
    id: bytes
    blob: bytes = attrs.field(repr=False)

    @property
    def line(self) -> str:
        return f"— {self.name} {b64(self.id + self.blob)}\n"


@attrs.frozen(slots=True)
class Note:
    """A parsed note; nothing is verified yet."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)

    def verify(self, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
        """Return the known keys that signed. Raises NoteError for a wrong signature of a known key, or for
        none.
        """
        known = {(key.name, key.id): key for key in keys}
        found: list[VerifierKey] = []
        for signature in self.signatures:
            key = known.get((signature.name, signature.id))
            if key is not None and key not in found:
                key.check(self.text, signature.blob)
                found.append(key)
        if not found:
            raise NoteError("no signature by a known key")
        return found


def sign_note(text: str, signers: Sequence[Signer], extra: str = "", timestamp: int | None = None) -> str:
    """Return the note of `text` (ends in a newline) with its signature lines, `extra` ready lines behind
    them.
    """
    return text + "\n" + "".join(signer.line(text, timestamp) for signer in signers) + extra


def parse_signature_line(line: str) -> Signature:
    """Read one signature line, without its newline. Raises NoteError."""
    dash, _, rest = line.partition(" ")
    name, space, encoded = rest.partition(" ")
    if dash != "—" or not space:
        raise NoteError("a signature line is written: em dash, key name, base64")
    data = unb64(encoded)
    if len(data) < 5:
        raise NoteError("a signature is too short")
    return Signature(check_name(name), data[:4], data[4:])


def parse_note(data: bytes | str) -> Note:
    """Take a signed note apart. Raises NoteError for anything that is not well-formed or is too large."""
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MAX_NOTE:
        raise NoteError(f"a note of {len(raw)} bytes is too large")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise NoteError("a note is UTF-8 text") from None
    if any(ord(char) < 0x20 and char != "\n" for char in text):
        raise NoteError("a note holds no control characters but newlines")
    body, blank, tail = text.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise NoteError("a note is text, an empty line, then signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"a note with more than {MAX_SIGNATURES} signatures is refused")
    return Note(body + "\n", tuple(parse_signature_line(line) for line in lines))
