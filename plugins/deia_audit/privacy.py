"""Subjects' names in the trail: plain, as pseudonyms, or encrypted under a key of their own that can be destroyed.

The keys lie in the home's key folder, which no snapshot carries. Erasing a subject destroys its key and leaves a
tombstone beside the log, so that a key that comes back with an old copy of the folder is destroyed again at the next
start; every hash in the log still verifies, since not a byte of it changes.
"""

from __future__ import annotations

import hmac
import os
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from deia_audit.files import make_folders, replace_file, sync_file, sync_folder, write_all

PSEUDONYM = "p:"
ENCRYPTED = "e:"
ERASED = "(erased)"
_PSEUDONYM_KEY = "pseudonym.key"


class Subjects:
    """The subjects' keys of one home. Thread-safe; the first use of a subject touches the disk."""

    def __init__(self, keys: Path, evidence: Path) -> None:
        self._folder = keys / "subjects"
        self._pseudonym_path = keys / _PSEUDONYM_KEY
        self._tombstones = evidence / "erased"
        self._lock = threading.Lock()
        self._root: bytes | None = None
        self._keys: dict[str, bytes | None] = {}
        self._seen: tuple[int, int, int] | None = None

    # -- pseudonyms --

    def root(self) -> bytes:
        """Return the home's pseudonym key, made at first use."""
        if self._root is None:
            with self._lock:
                if self._root is None:
                    self._root = load_or_make(self._pseudonym_path)
        return self._root

    def handle(self, subject: str) -> str:
        """Return the keyed hash that stands for a subject in file names, tombstones and pseudonyms."""
        return hmac.new(self.root(), subject.encode("utf-8", "replace"), sha256).hexdigest()[:32]

    def pseudonym(self, subject: str) -> str:
        """Return a subject's pseudonym: the same each time, and told back only by who holds the key."""
        return PSEUDONYM + self.handle(subject)

    def digest(self, subject: str, data: bytes) -> str:
        """Return a keyed digest of a text: under the subject's key, `(erased)` for an erased one, else the home's."""
        key = self._key(subject) if subject else self.root()
        return ERASED if key is None else "hmac-sha256:" + hmac.new(key, data, sha256).hexdigest()

    # -- encryption --

    def encrypt(self, subject: str) -> str:
        """Return the subject's name encrypted under its own key; the same each time, so that it can be searched."""
        key = self._key(subject)
        if key is None:
            return ERASED
        data = subject.encode("utf-8", "replace")
        nonce = hmac.new(key, data, sha256).digest()[:12]  # one message under each key: equal text, equal nonce
        sealed = nonce + AESGCM(key).encrypt(nonce, data, self.handle(subject).encode())
        return f"{ENCRYPTED}{self.handle(subject)}:{urlsafe_b64encode(sealed).decode().rstrip('=')}"

    def hide(self, subject: str, text: str) -> str:
        """Return `text` encrypted under the subject's key, `(erased)` for an erased one; never the same twice."""
        key = self._key(subject)
        if key is None:
            return ERASED
        nonce = os.urandom(12)
        handle = self.handle(subject)
        sealed = nonce + AESGCM(key).encrypt(nonce, text.encode("utf-8", "replace"), handle.encode())
        return f"{ENCRYPTED}{handle}:{urlsafe_b64encode(sealed).decode().rstrip('=')}"

    def encrypted(self, subject: str) -> str:
        """Return how `encrypt` writes a subject that has a key, `(erased)` for one that had, else "". Makes no key."""
        handle = self.handle(subject)
        if handle in self._erased() or (self._folder / f"{handle}.key").exists():
            return self.encrypt(subject)
        return ""

    def knows(self, subject: str) -> bool:
        """Whether the subject's key is in memory (or known to be gone): then nothing here touches the disk."""
        return subject in self._keys

    @property
    def ready(self) -> bool:
        """Whether the home's key is in memory."""
        return self._root is not None

    def key(self, subject: str) -> bytes | None:
        """Return the subject's own key, made at first use; None when it was erased."""
        return self._key(subject)

    def decrypt(self, text: str) -> str:
        """Return the name or text behind an encrypted one, or `(erased)` when its key is gone. Raises ValueError."""
        handle, _, encoded = text.removeprefix(ENCRYPTED).partition(":")
        if not text.startswith(ENCRYPTED) or len(handle) != 32 or not handle.isalnum():
            raise ValueError("not an encrypted subject")
        if handle in self._erased():  # its key may have come back with an old copy of the folder
            return ERASED
        try:
            key = (self._folder / f"{handle}.key").read_bytes()
        except FileNotFoundError:
            return ERASED
        data = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        try:
            return AESGCM(key).decrypt(data[:12], data[12:], handle.encode()).decode()
        except (InvalidTag, ValueError):
            raise ValueError("the subject can't be decrypted under its key") from None

    def _key(self, subject: str) -> bytes | None:
        if subject in self._keys:
            return self._keys[subject]
        handle = self.handle(subject)
        with self._lock:
            if self._seen is None:
                self._seen = self._stamp()
            if handle in self._erased():
                key = None
            else:
                key = load_or_make(self._folder / f"{handle}.key")
            if len(self._keys) >= 4096:
                self._keys.clear()
            self._keys[subject] = key
        return key

    # -- erasure --

    def erase(self, subject: str) -> bool:
        """Destroy a subject's key, for good; False when there was none. What it encrypted can't be read any more."""
        handle = self.handle(subject)
        with self._lock:
            make_folders(self._tombstones.parent)
            descriptor = os.open(self._tombstones, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                write_all(descriptor, f"\n{handle}\n".encode())  # the newline in front ends what a power cut tore
                sync_file(descriptor)
            finally:
                os.close(descriptor)
            self._keys[subject] = None
            return self._destroy(handle)

    def forget_erased(self) -> bool:
        """Drop the keys in memory after any process of this home erased a subject; whether one did. Blocking."""
        stamp = self._stamp()
        with self._lock:
            if self._seen is None or stamp == self._seen:
                return False
            self._seen = stamp
            self._keys.clear()  # those of others come back from their files
        return True

    def forget(self) -> None:
        """Drop the keys in memory: another process says that it erased a subject."""
        with self._lock:
            self._keys.clear()

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._tombstones.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_ino, found.st_size, found.st_mtime_ns)

    def reapply(self) -> int:
        """Destroy again the keys of erased subjects that came back with a restored copy; how many there were."""
        with self._lock:
            return sum(self._destroy(handle) for handle in self._erased())

    def _erased(self) -> set[str]:
        try:
            return {line for line in self._tombstones.read_text("ascii").splitlines() if len(line) == 32}
        except FileNotFoundError:
            return set()

    def _destroy(self, handle: str) -> bool:
        path = self._folder / f"{handle}.key"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            os.write(descriptor, os.urandom(32))
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        path.unlink(missing_ok=True)
        sync_folder(self._folder)
        return True


def load_or_make(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        make_folders(path.parent, 0o700)
        key = os.urandom(32)
        try:
            os.link(_written_beside(path, key), path)  # of two workers the first wins
        except FileExistsError:
            key = path.read_bytes()
        finally:
            path.with_name(f".{path.name}.{os.getpid()}").unlink(missing_ok=True)
        sync_folder(path.parent)
    if len(key) != 32:
        raise ValueError(f"the key file {path} is damaged: restore it from where it was kept")
    return key


def _written_beside(path: Path, key: bytes) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    replace_file(beside, key, 0o600)
    return beside
