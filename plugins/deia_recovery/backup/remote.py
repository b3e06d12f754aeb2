"""Backups off the machine: an object store through obstore (S3, GCS, Azure, a folder).

Writes are conditional (create only), so nothing that was stored can be replaced, and no right to delete is needed. A
store that ignores the condition is refused at start. Calls are repeated with growing pauses; what fails for good is
said and tried again with the next round.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deia_recovery.engine.files import sync_folder, write_whole
from deia_recovery.errors import BackupError
from deia_recovery.settings import RemoteSettings

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
"""Seconds between attempts: doubled from the first, up to the longest, with jitter. How many is `attempts`."""


class RemoteVault:
    """The objects of one store id below the configured prefix."""

    def __init__(self, settings: RemoteSettings, prefix: str, store: Any = None) -> None:
        self._settings = settings
        self._prefix = prefix.strip("/")
        self.where = f"{_shown(settings.url)}/{self._prefix}"
        self._store = store if store is not None else open_store(settings)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _call(self, function: Callable[[], T]) -> T:
        import obstore.exceptions as failures
        import tenacity

        def passing(error: BaseException) -> bool:
            return isinstance(error, (failures.BaseError, OSError)) and not isinstance(
                error,
                (
                    failures.AlreadyExistsError,
                    failures.PreconditionError,
                    failures.NotFoundError,
                    failures.PermissionDeniedError,
                    failures.UnauthenticatedError,
                    FileNotFoundError,
                ),
            )

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._settings.attempts),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
            retry=tenacity.retry_if_exception(passing),
            reraise=True,
        )
        try:
            return retrying(function)
        except FileNotFoundError:
            raise
        except failures.NotFoundError as error:
            raise FileNotFoundError(str(error)) from error

    def put(self, name: str, data: bytes) -> bool:
        import obstore
        import obstore.exceptions as failures

        try:
            self._call(lambda: obstore.put(self._store, self._path(name), data, mode="create"))
        except failures.AlreadyExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        import obstore

        self._call(lambda: obstore.put(self._store, self._path(name), data, mode="overwrite"))

    def swap(self, name: str, data: bytes, etag: str | None) -> bool:
        """Replace an object only if it is still the one with `etag`. Returns whether it was."""
        import obstore
        import obstore.exceptions as failures

        mode: Any = {"e_tag": etag} if etag else "create"
        try:
            self._call(lambda: obstore.put(self._store, self._path(name), data, mode=mode))
        except (failures.PreconditionError, failures.AlreadyExistsError):
            return False
        except (failures.NotSupportedError, NotImplementedError):
            self.replace(name, data)
        return True

    def get(self, name: str) -> bytes:
        import obstore

        return self._call(lambda: bytes(obstore.get(self._store, self._path(name)).bytes()))

    def etag(self, name: str) -> str | None:
        import obstore

        try:
            return self._call(lambda: obstore.head(self._store, self._path(name)))["e_tag"]
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        import obstore

        try:
            return int(self._call(lambda: obstore.head(self._store, self._path(name)))["size"])
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        import obstore

        skip = len(self._prefix) + 1 if self._prefix else 0
        batches = self._call(lambda: list(obstore.list(self._store, self._path(prefix).rstrip("/"))))
        yield from sorted(item["path"][skip:] for batch in batches for item in batch)

    def delete(self, name: str) -> None:
        import obstore

        self._call(lambda: obstore.delete(self._store, self._path(name)))

    def age(self, name: str, now: float) -> float:
        import obstore

        head = self._call(lambda: obstore.head(self._store, self._path(name)))
        return now - float(head["last_modified"].timestamp())

    def probe(self) -> None:
        """Raise BackupError unless the store keeps the promise of a conditional write."""
        name = "probe"
        self.put(name, b"written once\n")
        if self.put(name, b"written again\n") or self.get(name) != b"written once\n":
            raise BackupError(
                f"{self.where} ignores conditional writes (a second create of the same object was accepted): two "
                "machines could overwrite each other's backups there. It is refused: use a store that supports "
                "If-None-Match, or a folder"
            )


def open_store(settings: RemoteSettings) -> Any:
    """The obstore of a URL. Raises BackupError where obstore is missing or does not take the URL."""
    try:
        import obstore.store as stores
    except ImportError as error:
        raise BackupError("backups off the machine need obstore: install deia-hardening[remote]") from error
    if settings.url.startswith("file://"):
        folder = Path(settings.url.removeprefix("file://"))
        return stores.LocalStore(folder, mkdir=True)
    options = {str(name): str(one) for name, one in settings.options.items()}
    client: dict[str, Any] = {"timeout": f"{float(settings.timeout):g}s"}
    if options.pop("allow_http", "") == "true" or options.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    try:
        open_url: Any = stores.from_url
        return open_url(settings.url, config=options or None, client_options=client)
    except BaseException as error:  # obstore's Rust side panics on a misnamed option
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise BackupError(f"recovery.remote: {_shown(settings.url)} can't be used: {error}") from error


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".rstrip("/")


class Ownership:
    """Which machine writes a store's backups: one object, changed only by compare-and-set."""

    NAME = "owner.json"

    def __init__(self, vault: RemoteVault, root: Path) -> None:
        self._vault = vault
        self._path = root / "machine"

    def machine(self) -> str:
        """This home's own name, made once, whoever asks first; it is not part of any backup."""
        try:
            return self._path.read_text("ascii").strip()
        except FileNotFoundError:
            name = str(uuid.uuid4())
        proposed = self._path.with_name(f"{self._path.name}.{name}")
        write_whole(proposed, name.encode())
        try:
            os.link(proposed, self._path)  # of several threads and workers one gives the name
        except FileExistsError:
            name = self._path.read_text("ascii").strip()
        finally:
            proposed.unlink()
        sync_folder(self._path.parent)
        return name

    def owner(self) -> str | None:
        try:
            return str(msgspec.json.decode(self._vault.get(self.NAME), type=dict[str, Any])["machine"])
        except FileNotFoundError:
            return None

    def claim(self, *, take_over: bool = False) -> None:
        """Own the store's backups, or raise BackupError naming the one who does."""
        mine = self.machine()
        etag = self._vault.etag(self.NAME)
        owner = self.owner()
        if owner == mine:
            return
        if owner is not None and not take_over:
            raise BackupError(
                f"{self._vault.where} is written by another machine ({owner}): two machines with one state would spoil "
                "each other's backups, so nothing is written there. If that machine is gone, restore here with "
                "'deia-hardening recovery restore --take-over'"
            )
        document = msgspec.json.encode({"format": 1, "machine": mine, "since": time.time()})
        if not self._vault.swap(self.NAME, document, etag) and self.owner() != mine:  # another thread's claim is ours
            raise BackupError(f"another machine claimed {self._vault.where} at the same moment; nothing was written")
