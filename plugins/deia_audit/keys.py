"""The private keys of a trail: the log's fixed key and the key of the present epoch, as files of mode 0600.

Blocking; for core-owned threads. A destroyed key is overwritten, unlinked and its folder synced; what a
journaling or copy-on-write file system keeps of it is beyond this process, and the guide says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deia_audit.files import make_folders, replace_file, sync_file, sync_folder
from deia_audit.notes import NoteError, b64, unb64

LOG_KEY = "log.key"
BEGUN = "begun"
HEADER = "deia-audit-key/1 ed25519 "


class KeyFileError(Exception):
    """A key file is missing or damaged; the text says which and what to do."""


class KeyFolder:
    """The folder that holds a trail's private keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[str, tuple[tuple[int, int, int], Ed25519PrivateKey]] = {}

    def generate(self, name: str) -> Ed25519PrivateKey:
        """Make a new key, durable under `name`; an existing file of that name is replaced."""
        make_folders(self.folder, 0o700)
        key = Ed25519PrivateKey.generate()
        replace_file(self.folder / name, f"{HEADER}{b64(key.private_bytes_raw())}\n".encode(), 0o600)
        return key

    def load(self, name: str) -> Ed25519PrivateKey:
        """Return the key stored as `name`; read again only when its file is another. Raises KeyFileError."""
        path = f"{self.folder}/{name}"
        try:
            found = os.stat(path)  # noqa: PTH116
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._loaded.get(name)
            if known is None or known[0] != stamp:
                known = self._loaded[name] = (stamp, _read(Path(path)))
        except FileNotFoundError:
            raise KeyFileError(
                f"the audit key {path} is missing; `audit new-log` begins a log under new keys"
            ) from None
        except (NoteError, ValueError) as error:
            raise KeyFileError(f"the audit key {path} is damaged ({error}); restore it or begin a new log") from None
        return known[1]

    def epochs(self) -> list[int]:
        """Return the epochs whose keys are here, in order."""
        try:
            names = os.listdir(self.folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
        parts = (name.removeprefix("epoch-").removesuffix(".key") for name in names if name.endswith(".key"))
        return sorted(int(part) for part in parts if part.isascii() and part.isdecimal())

    def begun(self) -> bool:
        """Return whether a log was begun under these keys: then its evidence must be there."""
        return (self.folder / BEGUN).exists()

    def begun_origin(self) -> str:
        """Return which log was begun under these keys. Raises KeyFileError."""
        path = self.folder / BEGUN
        try:
            return path.read_text("ascii").removesuffix("\n")
        except FileNotFoundError:
            raise KeyFileError(f"{path}, which says that a log was begun here, is missing") from None
        except UnicodeDecodeError:
            raise KeyFileError(f"{path} is damaged") from None

    def mark_begun(self, origin: str) -> None:
        """Remember, durably, that the log `origin` was begun."""
        replace_file(self.folder / BEGUN, f"{origin}\n".encode(), 0o600)

    def destroy(self, name: str) -> None:
        """Overwrite and remove a key, durably; a missing one is no error."""
        self._loaded.pop(name, None)
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.write(descriptor, os.urandom(os.fstat(descriptor).st_size or 1))
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        path.unlink(missing_ok=True)
        sync_folder(self.folder)


def _read(path: Path) -> Ed25519PrivateKey:
    text = path.read_text("ascii")
    if not text.startswith(HEADER) or not text.endswith("\n"):
        raise NoteError("not a key file")
    return Ed25519PrivateKey.from_private_bytes(unb64(text[len(HEADER) : -1]))


def epoch_file(epoch: int) -> str:
    """Return the file name of an epoch's key."""
    return f"epoch-{epoch:06d}.key"
