"""Where budgets stand: accounts by key, in this process's memory or in files that all workers of a machine map.

Mapped ones are changed under one file lock, for some microseconds and without a system call but the lock's two, so
nothing is written per request; the kernel keeps what a killed process has done, and `Ledger.sync` puts it on disk about
once a second for the machine's own crash. A worker that stops with the lock in its hands makes the others `Busy`, which
is an answer, not a wait. The least recently used key of eight that share a place is forgotten where all are taken.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import secrets
import struct
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from deia_degradation.pool import account
from deia_degradation.pool.account import USED_AT, Words
from deia_hardening.journal.disk import sync_file, sync_folder
from deia_hardening.store.filesystem import boot_id

logger = logging.getLogger("deia_degradation")

WORKERS: Final = 32
"""Worker processes of one home that say what they have under way; further ones share the last place."""
_PATIENCE: Final = 0.02
"""Seconds for which another worker's hold of the lock is waited out."""
_OPENING: Final = 5.0
"""The same where accounts are opened."""
_TRY: Final = LOCK_EX | LOCK_NB
_DEAD: Final = 30.0
"""Seconds between two looks for workers that are gone."""
_WAYS: Final = 8
_MAGIC: Final = b"DEIABUD1"
_HEAD: Final = struct.Struct("<8sQQQ16sQd")
"""Magic, places, words of an account, kinds, salt, boot, and the wall clock less the monotonic one in that boot."""
_HEAD_SIZE: Final = 64


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """Another worker has the accounts and does not go on."""


class Accounts:
    """The accounts of one sort by key: at most about `limit`, the least recently used forgotten beyond.

    Use `find` and what it gives under `lock` only. In this process's memory until `Ledger.open` maps them.
    """

    def __init__(self, kinds: int, limit: int, *, learns: bool = False) -> None:
        self.kinds = kinds
        self.limit = limit
        self.learns = learns
        """Whether an upstream's word on its limits, and what is under way, is kept too."""
        self._size = account.size(kinds, 1 if learns else 0)
        self.unmap()

    def unmap(self) -> None:
        """Begin anew in this process's memory."""
        self.worker = 0
        self.shift = 0.0
        """The accounts' time less the monotonic clock's."""
        self.lock: AbstractContextManager[Any] = threading.Lock()
        self.find: Callable[[str, float], Words] = self._find
        """Gives the account of a key, made at the first call; the second argument is the accounts' time now."""
        self.forget_worker: Callable[[int], None] | None = None
        """Says that a worker is dead, where accounts are shared and it matters."""
        self._table: OrderedDict[str, Words] = OrderedDict()

    def _find(self, key: str, now: float) -> Words:
        table = self._table
        found = table.get(key)
        if found is None:
            found = table[key] = memoryview(array("d", bytes(8 * self._size)))
            while len(table) > self.limit:
                table.popitem(last=False)
        else:
            table.move_to_end(key)
        return found

    def map(self, path: Path, lock: AbstractContextManager[Any], worker: int) -> None:
        """Go on with the accounts in the file at `path`. The caller holds `lock`. Raises OSError."""
        workers = WORKERS if self.learns else 0
        mapped = _Mapped(path, self.limit, self.kinds, workers)
        if workers:
            self.forget_worker = mapped.forget_worker
            if worker < workers - 1:
                mapped.forget_worker(worker)
        self.worker, self.shift, self.find, self.lock = worker, mapped.shift, mapped.find, lock
        self._table.clear()


class _Mapped:
    """A file of accounts, mapped."""

    def __init__(self, path: Path, limit: int, kinds: int, workers: int) -> None:
        self.kinds, self.workers = kinds, workers
        self.size = account.size(kinds, workers)
        self.places = _places(limit)
        self.buckets = self.places // _WAYS
        head = self._open(path)
        self._salt = head[4]
        boot, self.shift = _boot(), head[6]
        if head[5] != boot:
            self.shift = time.time() - time.monotonic()
            self._view[: _HEAD.size] = _HEAD.pack(*head[:5], boot, self.shift)
        hashes_end = _HEAD_SIZE + 8 * self.places
        self._hashes = self._view[_HEAD_SIZE:hashes_end].cast("Q")
        self._words = self._view[hashes_end:].cast("d")
        self._zeros = memoryview(array("d", bytes(8 * self.size)))
        self._known: dict[str, tuple[int, int, Words]] = {}

    def _open(self, path: Path) -> tuple[Any, ...]:
        """Map the file, made anew where there is none that fits."""
        length = _HEAD_SIZE + 8 * self.places * (1 + self.size)
        for make in (False, True):
            if make:
                _make(path, length, _HEAD.pack(*self._shape(), secrets.token_bytes(16), 0, 0.0))
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                if os.fstat(descriptor).st_size == length:
                    self._view = memoryview(mmap.mmap(descriptor, length))
                    head = _HEAD.unpack_from(self._view)
                    if head[:4] == self._shape():
                        return head
            finally:
                os.close(descriptor)
            logger.warning("%s can't be read; the budgets in it start afresh", path)
        raise OSError(f"{path} can't be replaced by a file of budgets")

    def _shape(self) -> tuple[bytes, int, int, int]:
        return _MAGIC, self.places, self.size, self.kinds

    def find(self, key: str, now: float) -> Words:
        known = self._known.get(key)
        if known is not None:
            place, own, words = known
            if self._hashes[place] == own:
                words[USED_AT] = now
                return words
        return self._look(key, now)

    def _look(self, key: str, now: float) -> Words:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, key=self._salt).digest()
        own = int.from_bytes(digest[:8], "little") or 1
        first = int.from_bytes(digest[8:], "little") % self.buckets * _WAYS
        hashes = self._hashes[first : first + _WAYS].tolist()
        if own in hashes:
            place = first + hashes.index(own)
        else:
            place = first + hashes.index(0) if 0 in hashes else min(range(first, first + _WAYS), key=self._used_at)
            self._at(place)[:] = self._zeros
            self._hashes[place] = own
        words = self._at(place)
        words[USED_AT] = now
        if len(self._known) >= self.places:
            self._known.clear()
        self._known[key] = place, own, words
        return words

    def _at(self, place: int) -> Words:
        return self._words[place * self.size : (place + 1) * self.size]

    def _used_at(self, place: int) -> float:
        return self._words[place * self.size + USED_AT]

    def forget_worker(self, worker: int) -> None:
        """Nothing is under way for `worker`: whoever was called so before is dead."""
        for place, one in enumerate(self._hashes.tolist()):
            if one:
                account.forget_worker(self._at(place), self.kinds, self.workers, worker)


class FileLock:
    """Excludes the other threads and processes; raises `Busy` where one of them does not go on. Not across a fork."""

    def __init__(self, path: Path) -> None:
        self.thread = threading.Lock()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.used = False

    def __enter__(self) -> None:
        self.thread.acquire()
        try:
            flock(self.descriptor, _TRY)
        except BlockingIOError:
            self._wait()
        except BaseException:
            self.thread.release()
            raise
        self.used = True

    def _wait(self) -> None:
        until = time.monotonic() + _PATIENCE
        try:
            while True:
                os.sched_yield()  # it holds it for microseconds, or waits for the processor
                try:
                    flock(self.descriptor, _TRY)
                    return
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Busy("another worker has stopped with the accounts in its hands") from None
        except BaseException:
            self.thread.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flock(self.descriptor, LOCK_UN)
        self.thread.release()


class Ledger:
    """The accounts of one app in this process. `accounts` does no I/O; `open` and `sync` do: not on a serving loop."""

    def __init__(self) -> None:
        self.trouble = ""
        """Why budgets count in this process only; empty where they are shared."""
        self._sorts: dict[str, Accounts] = {}
        self._mapped: dict[str, Path] = {}
        self._lock: FileLock | None = None
        self._place: int | None = None
        self._worker = WORKERS - 1
        self._folder = Path()
        self._looked_at = 0.0

    def accounts(self, name: str, kinds: int, limit: int, *, learns: bool = False) -> Accounts:
        """The accounts of this name; with another limit than before they start afresh."""
        found = self._sorts.get(name)
        if found is None or _places(found.limit) != _places(limit):
            found = self._sorts[name] = Accounts(kinds, limit, learns=learns)
            self._mapped.pop(name, None)
        return found

    def open(self, folder: Path) -> None:
        """Share all accounts that are not shared yet with the other workers, through files in `folder`.

        Where that can't be, they count in this process and `trouble` says why.
        """
        if all(name in self._mapped for name in self._sorts):
            return
        try:
            if self._lock is None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = FileLock(folder / "lock")
                self._folder = folder
                self._worker = self._take_place(folder)
            for name, accounts in self._sorts.items():
                if name not in self._mapped:
                    path = folder / f"{name}-{_places(accounts.limit)}"
                    self._map(accounts, path, self._lock)
                    self._mapped[name] = path
                    for other in folder.glob(f"{name}-*"):  # of another limit
                        if other != path:
                            other.unlink(missing_ok=True)
            self.trouble = ""
        except (OSError, Busy, ValueError) as error:
            self.trouble = f"budgets and quotas count in this process only: {error}"
            logger.error("%s", self.trouble)

    def _map(self, accounts: Accounts, path: Path, lock: FileLock) -> None:
        """With more patience than a request has: who gives up here counts for itself until the next reload."""
        until = time.monotonic() + _OPENING
        while True:
            try:
                with lock:
                    accounts.map(path, lock, self._worker)
                return
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(_PATIENCE)

    def _take_place(self, folder: Path) -> int:
        """A number that no other living process has here; it is free again when this process ends, however."""
        for number in range(WORKERS - 1):
            descriptor = os.open(folder / f"worker-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                flock(descriptor, _TRY)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._place = descriptor
            return number
        return WORKERS - 1

    def forget_dead(self) -> None:
        """What workers that are gone for good had under way is so no more: it would narrow what is learned for ever."""
        lock = self._lock
        for number in range(WORKERS - 1):
            try:
                descriptor = os.open(self._folder / f"worker-{number}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                flock(descriptor, _TRY)
                if lock is not None:
                    with lock:
                        for accounts in self._sorts.values():
                            if accounts.forget_worker is not None:
                                accounts.forget_worker(number)
            except (BlockingIOError, Busy):
                pass  # it lives; or next time
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Count in this process only, until `open`. In a forked child too, where place and lock are the parent's."""
        self._mapped.clear()
        for accounts in self._sorts.values():
            accounts.unmap()
        lock, place = self._lock, self._place
        self._lock = self._place = None
        for descriptor in (place, None if lock is None else lock.descriptor):
            if descriptor is not None:
                os.close(descriptor)

    @property
    def used(self) -> bool:
        """Whether anything may have changed since the last `sync`."""
        return self._lock is not None and self._lock.used

    def sync(self) -> None:
        """Put what has changed on disk, and now and then forget workers that are gone. Raises OSError."""
        lock = self._lock
        if lock is None or not lock.used:
            return
        lock.used = False
        now = time.monotonic()
        if now >= self._looked_at + _DEAD:
            self._looked_at = now
            self.forget_dead()
        for path in list(self._mapped.values()):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                sync_file(descriptor)
            finally:
                os.close(descriptor)


def _places(limit: int) -> int:
    """Room for `limit` keys, with some to spare, so that few of them share eight places with eight others."""
    return max(_WAYS, 1 << (limit + limit // 4 - 1).bit_length())


def _boot() -> int:
    """Which boot of the machine this is: the monotonic clock starts anew with each."""
    text = boot_id() or str(round((time.time() - time.monotonic()) / 60.0))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _make(path: Path, length: int, head: bytes) -> None:
    """Put an empty file of that length in place, with its room on disk: a hole could not be written on a full one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, head)
            try:
                os.posix_fallocate(descriptor, 0, length)
            except (AttributeError, OSError):  # not here, not on this file system, or not so much: then this fails too
                _fill(descriptor, length - len(head))
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(path)
        sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _fill(descriptor: int, length: int) -> None:
    block = bytes(1 << 20)
    while length > 0:
        length -= os.write(descriptor, block[:length])
