"""The one key of the backups, and what is derived from it.

It authenticates manifests and segments always, and encrypts when told to. It lives apart from the backups, in the
settings or in `keys/recovery.key` (0600); it is never in a snapshot. Without it backups can't be used, by design.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from deia_recovery.engine.files import make_folder, write_whole
from deia_recovery.errors import StateError

_HEADER = "deia-recovery-key/1 "


class KeyRing:
    """Keys for authentication, encryption and naming, derived from one 32-byte master key."""

    __slots__ = ("_enc", "_mac", "_name", "_nonce", "encrypt", "id", "master")

    def __init__(self, master: bytes, *, encrypt: bool = False) -> None:
        self.master = master
        self.encrypt = encrypt
        self._mac = _derive(master, b"mac")
        self._enc = _derive(master, b"encrypt")
        self._name = _derive(master, b"name")
        self._nonce = _derive(master, b"nonce")
        self.id = _derive(master, b"id").hex()[:16]
        """Tells one key from another without telling anything about it."""

    def mac(self, data: bytes) -> str:
        return hmac.new(self._mac, data, hashlib.sha256).hexdigest()

    def verify(self, data: bytes, mac: str) -> bool:
        return hmac.compare_digest(self.mac(data).encode(), mac.encode("utf-8", "replace"))

    def name(self, plain: bytes) -> str:
        """A chunk's name: its SHA-256, keyed when encrypted, so that names tell nothing of the content."""
        if self.encrypt:
            return hmac.new(self._name, plain, hashlib.sha256).hexdigest()
        return hashlib.sha256(plain).hexdigest()

    def seal(self, data: bytes, aad: bytes) -> bytes:
        """AES-256-GCM. The nonce is derived from name and content, so the same chunk is sealed to the same bytes."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = hmac.new(self._nonce, aad + hashlib.sha256(data).digest(), hashlib.sha256).digest()[:12]
        return nonce + AESGCM(self._enc).encrypt(nonce, data, aad)

    def open(self, data: bytes, aad: bytes) -> bytes:
        """Raises ValueError for what was changed or sealed with another key."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(self._enc).decrypt(data[:12], data[12:], aad)
        except InvalidTag as error:
            raise ValueError("it does not decrypt: it was changed, or sealed with another key") from error

    def __repr__(self) -> str:
        return f"KeyRing(id={self.id!r}, encrypt={self.encrypt})"


def _derive(master: bytes, label: bytes) -> bytes:
    return hmac.new(master, b"deia-recovery/1 " + label, hashlib.sha256).digest()


def parse_key(text: str) -> bytes:
    """64 hex digits as a key. Raises ValueError."""
    key = bytes.fromhex(text.strip())
    if len(key) != 32:
        raise ValueError("a recovery key has 64 hex digits")
    return key


def load_key(folder: Path, given: str | None, *, make: bool) -> bytes | None:
    """The key from the settings, else from `recovery.key`; made there when it is missing and `make`. Blocks."""
    if given:
        try:
            return parse_key(given)
        except ValueError as error:
            raise StateError(f"recovery.encryption.key is not a key: {error}") from error
    path = folder / "recovery.key"
    try:
        text = path.read_text("ascii")
    except FileNotFoundError:
        if not make:
            return None
        make_folder(folder)
        key = secrets.token_bytes(32)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.close(fd)
        except FileExistsError:  # another worker made it at this moment
            return load_key(folder, given, make=False)
        write_whole(path, f"{_HEADER}{key.hex()}\n".encode())
        return key
    if not text:
        raise StateError(f"{path} is empty: its making was interrupted; remove it if there are no backups yet")
    try:
        return parse_key(text.removeprefix(_HEADER))
    except ValueError as error:
        raise StateError(f"{path} is damaged: put the right key there; backups can't be read without it") from error
