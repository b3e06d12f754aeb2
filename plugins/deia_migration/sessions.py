"""Which version holds which session: one mapped table that all workers of a home share.

Fixed in size, so a client that makes up sessions can only push out the ones that were used longest ago. Looking is a
memory read; a session that one worker has learned is known to all of them at once, and to the next process after a
crash. Ids are kept as 64-bit hashes, never themselves.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from pathlib import Path
from struct import Struct

import attrs

from deia_hardening.sharding import sha256

_first8 = Struct(">Q").unpack_from
_MAGIC = b"DEIASES1"
_HEAD = 64
_WAYS = 8
_WEIGHT = 65535


@attrs.frozen
class Bound:
    """Where a session lives: the version's number, and the weight at which it was assigned (below 0: unknown)."""

    version: int
    weight: float


def fingerprint(tag: bytes, session: str | bytes) -> int:
    """A session's 64-bit hash, never 0. `tag` keeps ids of different kinds apart."""
    if isinstance(session, str):
        session = session.encode("utf-8", "surrogatepass")
    (value,) = _first8(sha256(tag + session[:512]).digest())
    return int(value) or 1


class SessionTable:
    """`slots` sessions in a file, mapped shared. `open` and `close` may be called again; looking needs no system call.

    Callable from any thread. Without a mapping nothing is known and nothing is kept.
    """

    def __init__(self, path: Path, slots: int) -> None:
        self._path = path
        self._slots = max(_WAYS, 1 << (slots - 1).bit_length())
        self._buckets = self._slots // _WAYS
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._descriptor = -1
        self._keys: memoryview = memoryview(b"")
        self._versions: memoryview = memoryview(b"")
        self._used: memoryview = memoryview(b"")
        self._weights: memoryview = memoryview(b"")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return _HEAD + self._slots * (8 + 4 + 4 + 2)

    @property
    def opened(self) -> bool:
        return self._map is not None

    def open(self) -> None:
        """Map the file, making it when it is missing or of another size or format. Blocks; raises OSError."""
        with self._lock:
            if self._map is not None:
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # A record lock, not flock: it belongs to the process, so a forked worker does not share it.
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_size != self.size or os.pread(descriptor, 8, 0) != _MAGIC:
                    os.ftruncate(descriptor, 0)
                    # Written out in full: a hole would turn a full disk into SIGBUS at the first session.
                    os.pwrite(descriptor, _MAGIC + bytes(self.size - len(_MAGIC)), 0)
                self._map = mmap.mmap(descriptor, self.size)
                fcntl.lockf(descriptor, fcntl.LOCK_UN)
                self._descriptor = descriptor
            finally:
                if self._map is None:
                    os.close(descriptor)
            whole = memoryview(self._map)
            parts: list[memoryview] = []
            at = _HEAD
            for width in (8, 4, 4, 2):
                parts.append(whole[at : at + width * self._slots])
                at += width * self._slots
            self._versions, self._used = parts[1].cast("I"), parts[2].cast("I")
            self._weights = parts[3].cast("H")
            self._keys = parts[0].cast("Q")  # last: `find` looks at this one first

    def close(self) -> None:
        """Forget the mapping; the file stays for the next process."""
        with self._lock:
            self._map = None
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
            self._keys = self._versions = self._used = self._weights = memoryview(b"")

    def find(self, key: int, now: int) -> Bound | None:
        """Where a session lives, marking it as used at `now` (Unix seconds); some 0.7 µs."""
        keys = self._keys
        if not keys:
            return None
        start = (key % self._buckets) * _WAYS
        ways = keys[start : start + _WAYS].tolist()
        if key not in ways:
            return None
        slot = start + ways.index(key)
        if self._used[slot] != now & 0xFFFFFFFF:
            self._used[slot] = now & 0xFFFFFFFF
        weight = self._weights[slot]
        return Bound(self._versions[slot], -1.0 if weight == _WEIGHT else weight / 10_000)

    def bind(self, key: int, version: int, weight: float, now: int) -> bool:
        """Bind a session to a version; False when nothing is mapped. `weight` below 0 is "unknown".

        The least recently used of eight places gives way. The file lock is held for some microseconds, by
        whoever binds, never by who looks.
        """
        with self._lock:
            mapped = self._map
            if mapped is None:
                return False
            keys = self._keys
            start = (key % self._buckets) * _WAYS
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                ways = keys[start : start + _WAYS].tolist()
                if key in ways:
                    slot = start + ways.index(key)
                elif 0 in ways:
                    slot = start + ways.index(0)
                else:
                    slot = min(range(start, start + _WAYS), key=self._used.__getitem__)
                    keys[slot] = 0
                self._versions[slot] = version
                self._used[slot] = now & 0xFFFFFFFF
                self._weights[slot] = _WEIGHT if weight < 0 else round(weight * 10_000)
                keys[slot] = key
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return True

    def forget(self, key: int) -> None:
        """A session has ended."""
        with self._lock:
            keys = self._keys
            if not keys:
                return
            start = (key % self._buckets) * _WAYS
            ways = keys[start : start + _WAYS].tolist()
            if key in ways:
                keys[start + ways.index(key)] = 0

    def drop(self, version: int) -> None:
        """Every session of a version has ended (it was cut, or is gone)."""
        with self._lock:
            for slot, found in enumerate(self._versions.tolist()):
                if found == version and self._keys[slot]:
                    self._keys[slot] = 0

    def alive(self, version: int, since: int) -> int:
        """How many sessions a version holds that were used at or after `since`; some milliseconds at 65,536."""
        versions = self._versions.tolist()
        if version not in versions:
            return 0
        keys, used = self._keys.tolist(), self._used.tolist()
        return sum(1 for slot, found in enumerate(versions) if found == version and keys[slot] and used[slot] >= since)
