"""Copies of the local backups in an object store: what is not there yet is sent, chunks before manifests."""

from __future__ import annotations

from pathlib import Path

from deia_recovery.backup.remote import Ownership, RemoteVault, open_store
from deia_recovery.backup.vault import FolderVault
from deia_recovery.settings import RemoteSettings

_ORDER = ("chunks/", "generations/", "snapshots/", "segments/")


class Mirror:
    """The store behind `recovery.remote.url`. Blocking."""

    def __init__(self, settings: RemoteSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._store = open_store(settings)
        self._claimed: set[str] = set()
        self._known: dict[str, set[str]] = {}

    def vault(self, store: str) -> RemoteVault:
        return RemoteVault(self._settings, store, self._store)

    def stores(self) -> list[str]:
        """The store ids that have snapshots there."""
        names = RemoteVault(self._settings, "", self._store).list("")
        return sorted({name.split("/", 1)[0] for name in names if "/snapshots/" in name})

    def claim(self, store: str, *, take_over: bool = False) -> None:
        """Probe the store and own this state's backups there. Raises BackupError."""
        vault = self.vault(store)
        vault.probe()
        Ownership(vault, self._root).claim(take_over=take_over)
        self._claimed.add(store)

    def copy(self, local: FolderVault, store: str, *, segments_only: bool = False) -> int:
        """Send what is missing. Returns how many objects were sent. Raises BackupError, OSError."""
        if store not in self._claimed:
            self.claim(store)
        elif Ownership(self.vault(store), self._root).owner() != Ownership(self.vault(store), self._root).machine():
            self._claimed.discard(store)
            self.claim(store)
        remote = self.vault(store)
        known = self._known.get(store)
        if known is None:
            known = self._known[store] = set(remote.list(""))
        sent = 0
        for prefix in ("segments/",) if segments_only else _ORDER:
            for name in local.list(prefix):
                if name not in known:
                    remote.put(name, local.get(name))
                    known.add(name)
                    sent += 1
        return sent
