"""Where one home's backups are, and with which key: what taking, proving and restoring share."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deia_recovery.backup.keys import KeyRing, load_key
from deia_recovery.backup.mirror import Mirror
from deia_recovery.backup.restore import Catalog
from deia_recovery.backup.shipping import read_shipped
from deia_recovery.backup.vault import FolderVault
from deia_recovery.engine.files import FileLock, make_folder
from deia_recovery.engine.generation import Generation, read_current
from deia_recovery.errors import NoBackups, StartRefused, StateError

if TYPE_CHECKING:
    from deia_recovery.service import DisasterRecovery


class Places:
    """Folder, key, catalog and remote copy of one home's backups, and what goes wrong with them."""

    def __init__(self, recovery: DisasterRecovery) -> None:
        self._recovery = recovery
        self._lock = threading.RLock()
        self._keys: KeyRing | None = None
        self._mirror: Mirror | None = None
        self.problems: dict[str, str] = {}
        """What goes wrong at the moment, by what was tried."""

    @property
    def settings(self) -> Any:
        return self._recovery.settings

    @property
    def folder(self) -> Path:
        configured = self.settings.backups
        return Path(configured) if configured else self._recovery.host.home / "backups"

    def keys(self, *, make: bool = True) -> KeyRing:
        """The key ring. Raises StateError where there is no key and none may be made."""
        with self._lock:
            if self._keys is None:
                encryption = self.settings.encryption
                master = load_key(self._recovery.host.home / "keys", encryption.key, make=make)
                if master is None:
                    raise StateError(
                        f"there is no recovery key in {self._recovery.host.home / 'keys'} and none in the settings: "
                        "backups can't be read without the key they were made with; nothing was touched"
                    )
                self._keys = KeyRing(master, encrypt=encryption.on)
            return self._keys

    def vault(self, store: str) -> FolderVault:
        return FolderVault(self.folder / store)

    def catalog(self) -> Catalog:
        """The backups of the state in force; where none was opened, of the one that would be. Opens no state.

        The local ones, or those off the machine where there are no others. Raises NoBackups where there are none.
        """
        generation = self._recovery.generation
        if generation is not None:
            return Catalog(self.vault(generation.store), self.keys(), generation.store)
        found = self._catalogs(self.known_store())
        if not found:
            raise NoBackups(f"there are no backups in {self.folder} yet, and no state")
        return found[0]

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder of one's own while the block runs; who wants the same one, in any process, waits. Blocks."""
        root = self._recovery.root
        make_folder(root)
        lock, folder = FileLock(root / f"{name}.scratch.lock"), root / name
        lock.acquire()
        try:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed one left
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    def known_store(self) -> str | None:
        """The id of this home's state as far as its files tell, though none was opened."""
        root = self._recovery.root
        with contextlib.suppress(StateError):
            current = read_current(root)
            if current is not None:
                return current.store
        shipped = read_shipped(root)
        return None if shipped is None else shipped.store

    def _catalogs(self, store: str | None) -> list[Catalog]:
        """The backups of a state (None: of the only one there is), local ones first. Raises StartRefused."""
        local = self.stores()
        if store is not None:
            local = [one for one in local if one == store]
        if len(local) > 1:
            raise StartRefused(
                f"there is no state, and {self.folder} holds the backups of several ({', '.join(local)}): move away "
                "all but the one that is to be restored"
            )
        catalogs = [Catalog(self.vault(one), self.keys(make=False), one) for one in local]
        mirror = self.mirror()
        if mirror is not None:
            remote = [one for one in mirror.stores() if store is None or one == store]
            if len(remote) > 1 and not local:
                raise StartRefused(
                    f"there is no state, and {self.settings.remote.url} holds the backups of several "
                    f"({', '.join(remote)}): give each home a prefix of its own"
                )
            catalogs += [Catalog(mirror.vault(one), self.keys(make=False), one) for one in remote]
        return catalogs

    def _generation(self) -> Generation:
        generation = self._recovery.generation
        if generation is None:
            self._recovery.engine.ensure()
            generation = self._recovery.generation
        if generation is None:
            raise StateError("there is no state yet: nothing was written so far")
        return generation

    def mirror(self) -> Mirror | None:
        """The copy off the machine, if one is configured. Raises BackupError for one that can't be used."""
        if not self.settings.remote.url:
            return None
        with self._lock:
            if self._mirror is None:
                self._mirror = Mirror(self.settings.remote, self._recovery.root)
            return self._mirror

    def stores(self) -> list[str]:
        """The store ids that have backups in the local folder."""
        if not self.folder.is_dir():
            return []
        return sorted(
            p.name for p in self.folder.iterdir() if (p / "snapshots").is_dir() and any((p / "snapshots").iterdir())
        )

    def any(self) -> bool:
        """Whether there are backups, here or (where configured) off the machine."""
        return bool(self.stores()) or bool(self.settings.remote.url)

    def _failed(self, what: str, why: str) -> None:
        if self.problems.get(what) != why:
            self.problems[what] = why
            self._recovery.journal({"kind": "recovery.problem", "what": what, "detail": why})
            self._recovery.host.touched()

    def _succeeded(self, what: str) -> None:
        if self.problems.pop(what, None) is not None:
            self._recovery.journal({"kind": "recovery.problem-over", "what": what})
            self._recovery.host.touched()
