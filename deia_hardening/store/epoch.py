"""The home's mapped page: what every worker of a machine looks at before each request.

One file of 8 KiB, mapped shared: a control word that changes when a field changes (mode, weights, revision
number), two copies of the fields of which the control word names the valid one, and a counter per store area.
A writer fills the copy that nobody reads, then stores the word (the latched form of a seqlock, as Linux's
`seqcount_latch_t`): one that dies halfway leaves the old fields in force. The page is only the store's shadow:
it is written after the commit and before the acknowledgement, and rebuilt from the store when it is lost.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NewType

import attrs
import msgspec

from deia_hardening.locks import lock, unlock

Area = NewType("Area", int)

SIZE: Final = 8192
MAGIC: Final = b"DEIAPG1\n"
PAGE_WORD: Final = 8  # index of the control word, in 8-byte words: a cache line of its own
_AREAS: Final = 16  # index of the first area counter
AREA_SLOTS: Final = 128
_COPY: Final = (2048, 5120)  # byte offsets of the two copies
_HEAD: Final = struct.Struct("<QII")  # control word, length, crc32
MAX_FIELDS: Final = 3072 - _HEAD.size
"""Bytes that all fields together may take, encoded."""
_FIELD_COST: Final = 24  # framing and stamp of a field

_encode = msgspec.msgpack.encode
_decode_body = msgspec.msgpack.Decoder(tuple[str, dict[str, bytes], dict[str, int]]).decode


@attrs.frozen
class PageState:
    """The fields of the page: decoded, and as JSON. `stamps` are the store revisions that wrote them."""

    version: int
    fields: Mapping[str, Any]
    raw: Mapping[str, bytes]
    stamps: Mapping[str, int]
    store: str = ""

    def get(self, field: str, default: Any = None) -> Any:
        """The decoded JSON value of the store's `page/<field>`."""
        return self.fields.get(field, default)


_EMPTY: Final = PageState(0, {}, {}, {})


def room_for(fields: Mapping[str, int]) -> bool:
    """Whether fields of these names and JSON lengths fit on the page together."""
    return sum(2 * len(name.encode()) + length + _FIELD_COST for name, length in fields.items()) <= MAX_FIELDS - 128


def area_slot(area: str) -> Area:
    """The counter of an area. Two areas may share one: that costs a look too many, never a change missed."""
    return Area(_AREAS + zlib.crc32(area.encode("utf-8", "surrogatepass")) % AREA_SLOTS)


class HomePage:
    """The page of one home. Nothing is opened before the first use; usable from any thread, and after fork.

    Looking (`state`, `version`, `area`) does no system call and never raises: without a file it shows the
    empty page. Writing takes a file lock and may block for as long as another process writes (microseconds).
    No descriptor is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.words: Any = _NO_WORDS
        """The mapped memory; where a call is too dear, `page.words[PAGE_WORD]` is `page.version()`."""
        self._mapping: _Mapping | None = None
        self._seen = 0
        self._state = _EMPTY
        self._lock = threading.Lock()
        _pages.add(self)

    # ---- looking

    def state(self) -> PageState:
        """The fields as they are now. 60-90 ns when nothing changed, some µs when something did."""
        if self.words[PAGE_WORD] != self._seen:
            self._load()
        return self._state

    def version(self) -> int:
        """The control word: differs from an earlier one when a field changed since."""
        return self.words[PAGE_WORD]  # type: ignore[no-any-return]

    def area(self, area: str | Area) -> int:
        """The store revision of the last commit in an area (or in one that shares its slot)."""
        return self.words[area_slot(area) if isinstance(area, str) else area]  # type: ignore[no-any-return]

    def counters(self) -> int:
        """The highest store revision that any area has seen."""
        return int(max(self.words[_AREAS : _AREAS + AREA_SLOTS]))

    def _load(self) -> None:
        mapping = self._mapping
        if mapping is None:
            return
        for _ in range(16):
            word = self.words[PAGE_WORD]
            state = _decode(mapping.view, word)
            if state is not None:
                self._state, self._seen = state, word
                return
            if word == self.words[PAGE_WORD]:
                return  # damaged, not overtaken: the last good fields stay until the store writes them anew

    # ---- opening

    def open(self) -> None:
        """Map the page, making the file when it is not there. Raises OSError."""
        with self._lock:
            if self._mapping is None:
                self._map()

    def close(self) -> None:
        """Forget the mapping; the last state stays readable."""
        with self._lock:
            self.words, self._seen = _NO_WORDS, 0
            # The memory itself is given back when the last thread that is looking drops it.
            self._mapping = None

    def _map(self) -> None:
        for _ in range(3):
            descriptor = _open_or_make(self._path)
            try:
                status = os.fstat(descriptor)
                if status.st_size == SIZE and os.pread(descriptor, len(MAGIC), 0) == MAGIC:
                    self._mapping = _Mapping(descriptor, status.st_ino)
                    self._seen = 0
                    self.words = self._mapping.words
                    return
            finally:
                os.close(descriptor)
            _replace_with_empty(self._path)
        raise OSError(f"{self._path} is not a page of this package and could not be replaced")

    # ---- writing

    def publish(
        self,
        fields: Iterable[tuple[str, bytes | None, int]] = (),
        *,
        areas: Mapping[str, int] | None = None,
        store: str = "",
    ) -> None:
        """Write fields as (name, JSON or None, store revision), and area counters.

        A field that already carries a newer revision of the same store keeps it, so of two writers the later
        commit wins whatever order they arrive in. `store` is the identity of the store's file: with another one
        the fields and stamps of the former go. Raises OSError, and ValueError when the fields take more than 3 KiB.
        """
        with self._lock, self._writing() as mapping:
            words, view = mapping.words, mapping.view
            for area, revision in (areas or {}).items():
                slot = area_slot(area)
                if words[slot] < revision:
                    words[slot] = revision
            changes = list(fields)
            word = words[PAGE_WORD]
            if not changes and not store:
                return
            now = _decode(view, word) or _decode(view, _latest(view)) or _EMPTY
            merged = merge(now, changes, store)
            if merged is None and now.version == word:
                return
            values, stamps = merged or (dict(now.raw), dict(now.stamps))
            new = max(word, now.version) + 1
            if now.version != word:  # damaged: go on from a number that no reader can have seen
                new = (1 << 62) | (time.time_ns() >> 8)
            body = _encode((store or now.store, values, stamps))
            if len(body) > MAX_FIELDS:
                raise ValueError(f"the page's fields take {len(body)} bytes; at most {MAX_FIELDS} fit")
            start = _COPY[new & 1]
            view[start + _HEAD.size : start + _HEAD.size + len(body)] = body
            view[start : start + _HEAD.size] = _HEAD.pack(new, len(body), _crc(new, body))
            words[PAGE_WORD] = new  # one aligned store: from here on the new copy is in force

    @contextmanager
    def _writing(self) -> Iterator[_Mapping]:
        for _ in range(8):
            if self._mapping is None:
                self._map()
            descriptor = _open_or_make(self._path)
            try:
                lock(descriptor)
                if self._mapping is not None and os.fstat(descriptor).st_ino == self._mapping.inode:
                    yield self._mapping
                    return
            finally:
                unlock(descriptor)
            self._mapping = None  # the file was replaced or deleted under us: map the one that is there
        raise OSError(f"{self._path} is replaced by somebody all the time")


def merge(
    now: PageState, changes: Iterable[tuple[str, bytes | None, int]], store: str
) -> tuple[dict[str, bytes], dict[str, int]] | None:
    """Apply (name, JSON or None, revision) to a state; None when nothing changes. Pure."""
    same = not store or not now.store or store == now.store
    values, stamps = (dict(now.raw), dict(now.stamps)) if same else ({}, {})
    changed = not same
    for name, value, revision in changes:
        if stamps.get(name, -1) >= revision:
            continue
        changed = True
        stamps[name] = revision
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    return (values, stamps) if changed else None


def _crc(word: int, body: bytes) -> int:
    return zlib.crc32(body, word & 0xFFFF_FFFF)


def _decode(view: memoryview, word: int) -> PageState | None:
    """The copy that `word` names, or None when it is not whole."""
    if word == 0:
        return _EMPTY
    start = _COPY[word & 1]
    stamp, length, crc = _HEAD.unpack_from(view, start)
    if stamp != word or length > MAX_FIELDS:
        return None
    body = bytes(view[start + _HEAD.size : start + _HEAD.size + length])
    if _crc(word, body) != crc:
        return None
    try:
        store, raw, stamps = _decode_body(body)
        fields = {name: msgspec.json.decode(value) for name, value in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return PageState(word, fields, raw, stamps, store)


def _latest(view: memoryview) -> int:
    """The highest word of the two copies, for a page whose control word was damaged."""
    return int(max(_HEAD.unpack_from(view, start)[0] for start in _COPY))


class _Mapping:
    """The shared memory of a page, without a descriptor.

    `mmap.mmap` keeps a duplicate of the descriptor before Python 3.13 (`trackfd`); an idle app may hold none,
    so there the C library's mmap is called directly.
    """

    def __init__(self, descriptor: int, inode: int) -> None:
        self.inode = inode
        if sys.version_info >= (3, 13):
            buffer: Any = mmap.mmap(descriptor, SIZE, trackfd=False)
        else:
            buffer = _map_memory(descriptor)
        self._buffer = buffer
        self.view = memoryview(buffer).cast("B")
        self.words = self.view.cast("Q")


def _map_memory(descriptor: int) -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    array = (ctypes.c_char * SIZE).from_address(address)
    finalizer = weakref.finalize(array, libc.munmap, address, SIZE)
    finalizer.atexit = False
    return array


def _open_or_make(path: Path) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            _link_empty(path)


def _empty_file(path: Path) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Written out in full: a hole would turn a full disk into SIGBUS at the first store.
        os.write(descriptor, MAGIC + bytes(SIZE - len(MAGIC)))
    finally:
        os.close(descriptor)
    return beside


def _link_empty(path: Path) -> None:
    beside = _empty_file(path)
    try:
        os.link(beside, path)
    except FileExistsError:
        pass  # another process was quicker
    finally:
        beside.unlink()


def _replace_with_empty(path: Path) -> None:
    _empty_file(path).rename(path)


_NO_WORDS: Final = [0] * (_AREAS + AREA_SLOTS)
_pages: weakref.WeakSet[HomePage] = weakref.WeakSet()


def _after_fork() -> None:
    for page in _pages:
        page._lock = threading.Lock()  # another thread of the parent may have held it; the mapping itself is shared


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
