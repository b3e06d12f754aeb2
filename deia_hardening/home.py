"""The home: the folder `.deia` with its journals, store and mapped page, shared by all apps of a process.

One `Home` per resolved path and process. It opens nothing until something is written or read, and what it has
opened is closed again by the journals and the store when there is no more work.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.errors import HardeningError
from deia_hardening.runtime import runtime

if TYPE_CHECKING:
    from deia_hardening.journal import Journal, JournalSettings
    from deia_hardening.store import HomePage, SharedStore, StoreSettings

_lock = threading.Lock()
_homes: weakref.WeakValueDictionary[Path, Home] = weakref.WeakValueDictionary()

FOLDERS = ("logs", "state", "keys", "run", "backups", "versions")


class Home:
    """Journals, store and page of one folder. Thread-safe; construction touches no file."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self._lock = threading.Lock()
        self._journals: dict[str, Journal] = {}
        self._store: SharedStore | None = None
        self._users: dict[int, tuple[str, str]] = {}
        self._made = False
        self._keepers = 0
        self._keeper: asyncio.Task[None] | None = None

    def make(self) -> None:
        """Create the folders that are missing; those with secrets are 0700. Blocking."""
        if self._made and self.path.is_dir():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in FOLDERS:
                mode = 0o700 if name in ("keys", "run", "state") else 0o750
                (self.path / name).mkdir(mode=mode, exist_ok=True)
        except OSError as error:
            raise HardeningError(
                f"the home {self.path} cannot be made: {error.strerror}; set 'home' or DEIA_HOME"
            ) from error
        ignore = self.path / ".gitignore"
        if not ignore.exists() and os.access(self.path, os.W_OK):
            ignore.write_text(
                "# kept by deia_hardening: only the settings belong into a repository\n*\n!config/\n!config/**\n"
            )
        self._made = True

    def join(self, user: int, name: str, digest: str) -> None:
        """An app starts to use the home. Raises HardeningError if another runs on it with other settings."""
        with self._lock:
            for other, (other_name, other_digest) in self._users.items():
                if other != user and other_digest != digest:
                    raise HardeningError(
                        f"{name} and {other_name} share the home {self.path} with different settings; "
                        "give one of them another 'home', or both the same settings"
                    )
            self._users[user] = (name, digest)

    def update(self, user: int, digest: str) -> None:
        """The app's settings changed by a reload."""
        with self._lock:
            if user in self._users:
                self._users[user] = (self._users[user][0], digest)

    def forget(self, user: int) -> None:
        """After a fork: the app is not started in this process."""
        self._users.pop(user, None)
        self._keepers, self._keeper = 0, None

    def leave(self, user: int) -> bool:
        """An app stops; true when it was the last one."""
        with self._lock:
            self._users.pop(user, None)
            return not self._users

    def journal(self, name: str, settings: JournalSettings) -> Journal:
        """The journal `logs/<name>.jsonl`, the same object for everybody."""
        found = self._journals.get(name)
        if found is None:
            from deia_hardening.journal import open_journal

            with self._lock:
                found = self._journals.get(name)
                if found is None:
                    found = open_journal(self.path / "logs" / f"{name}.jsonl", settings, clock=self.clock)
                    self._journals[name] = found
        return found

    def journals(self) -> Iterable[Journal]:
        with self._lock:
            return tuple(self._journals.values())

    def store(self, settings: StoreSettings) -> SharedStore:
        """The store of small shared state, the same object for everybody."""
        found = self._store
        if found is None:
            from deia_hardening.store import open_store

            with self._lock:
                found = self._store
                if found is None:
                    found = open_store(settings, self.path / "state", blocking=_blocking, clock=self.clock)
                    self._store = found
        return found

    async def keep(self, settings: StoreSettings) -> None:
        """Keep the mapped page in step with the store while a lifespan is open; background loop, once per home."""
        self._keepers += 1
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self.store(settings).keep(), name="deia-page")

    async def release(self) -> None:
        """A lifespan that kept the page closed; the last one ends the keeping. Background loop."""
        self._keepers -= 1
        if self._keepers <= 0 and self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.cancel()
            await asyncio.wait([keeper])

    @property
    def page(self) -> HomePage:
        store = self._store
        if store is None:
            raise HardeningError("the home's page was asked for before its store")
        return store.page


def _blocking(function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    return runtime().blocking(function, *args)


def home_at(path: Path, clock: Clock = SYSTEM_CLOCK) -> Home:
    """The process's `Home` for this folder."""
    path = path.absolute()
    with _lock:
        found = _homes.get(path)
        if found is None:
            found = _homes[path] = Home(path, clock)
        return found


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for home in list(_homes.values()):
        home._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
