"""What a store is: small shared state with revisions, watches and leases.

The types, the errors and the two faces (`SyncStore` for threads and tools without a loop, `Store` for
coroutines on any loop). A revision is one number for the whole store that only grows, also across a deleted
key or a rebuilt file, so a compare-and-set can't be fooled by a key that came back and a fencing token never
repeats.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import attrs

from deia_hardening.errors import HardeningError

if TYPE_CHECKING:
    from deia_hardening.store.epoch import HomePage

T = TypeVar("T")

Revisions: TypeAlias = list[int]
"""The revision of each write of a batch."""

MAX_KEY: Final = 512
"""Bytes of UTF-8 in a key: a limit of the format, not of taste (PostgreSQL's index rows end at 2,700)."""

MAX_VALUE: Final = 1 << 20
"""Bytes in a value: 1 MiB. This is shared state, not a place for files."""


class StoreError(HardeningError):
    """The base of what a store raises."""


class StaleRevision(StoreError):  # noqa: N818 - the field's name for it
    """The key's revision was not the expected one; nothing was written."""

    def __init__(self, key: str, expected: int, found: int) -> None:
        self.key, self.expected, self.found = key, expected, found
        super().__init__(
            f"'{key}' is at revision {found}, not {expected}: somebody else changed it; "
            "nothing was written; read it again and decide anew"
        )


class LeaseHeld(StoreError):  # noqa: N818 - a state, not a fault
    """Somebody else holds the lease and the caller did not want to wait."""


class StoreUnavailable(StoreError):  # noqa: N818 - a state, not a fault
    """The store can't be used now (locked for too long, disk full, server away); nothing was written."""


class StoreDamaged(StoreError):  # noqa: N818 - a state, not a fault
    """The store's file is damaged. It is set aside and rebuilt at the next use."""


class WatchExpired(StoreError):  # noqa: N818 - a state, not a fault
    """A watch fell so far behind that deletions have been forgotten: list again, then watch again."""


@attrs.frozen
class Entry:
    """A value and the revision that wrote it."""

    value: bytes
    revision: int


@attrs.frozen
class Write:
    """One write of an atomic batch: `value` None deletes; `if_revision` 0 means that the key must not exist."""

    key: str
    value: bytes | None
    if_revision: int | None = None


@attrs.frozen
class Change:
    """What a watch reports: the entry as it is now, or None when it was deleted."""

    key: str
    entry: Entry | None
    revision: int


@attrs.frozen
class Rebuilt:
    """A damaged store was set aside. `at` is Unix seconds; `set_aside` names the files that were kept."""

    at: float
    set_aside: str
    why: str


@attrs.frozen
class Grant:
    """A lease as the backend gave it; `token` is the fencing token."""

    name: str
    holder: str
    token: int


class Blocking(Protocol):
    """Runs a blocking call on a core-owned thread; awaitable on any loop."""

    def __call__(self, fn: Callable[..., T], /, *args: object) -> Awaitable[T]: ...


class SyncStore(Protocol):
    """A store without a loop: each call may block on the disk or the network, from any thread."""

    def get(self, key: str) -> Entry | None: ...
    def put(self, key: str, value: bytes, *, if_revision: int | None = None) -> int: ...
    def delete(self, key: str, *, if_revision: int | None = None) -> bool: ...
    def apply(self, writes: Sequence[Write]) -> Revisions: ...
    def list(self, prefix: str) -> list[tuple[str, Entry]]: ...
    def lease(self, name: str, ttl: float, *, wait: float = 0.0) -> AbstractContextManager[SyncLease]: ...


class Leasing(Protocol):
    """What a held lease needs of a backend."""

    def lease_take(self, name: str, ttl: float, holder: str) -> Grant | None: ...
    def lease_renew(self, grant: Grant, ttl: float) -> bool: ...
    def lease_release(self, grant: Grant) -> None: ...


class Backend(SyncStore, Leasing, Protocol):
    """What `Store` needs beneath it; a further backend implements this.

    `stamp` is a cheap token that differs when something may have changed, or None when only asking tells;
    `poll_interval` is how often, in seconds, it is worth taking. `heard` costs nothing and differs when something told
    of a change; `listen` is what hears, on the background loop, until cancelled or of no use.
    """

    def start(self) -> None: ...
    def close(self) -> None: ...
    def revision(self) -> int: ...
    def changes(self, prefix: str, since: int, limit: int) -> Sequence[Change]: ...
    def rebuilt(self) -> Rebuilt | None: ...
    def identity(self) -> str: ...
    def stamp(self) -> object: ...
    def poll_interval(self) -> float: ...
    def heard(self) -> int: ...
    async def listen(self, blocking: Blocking) -> None: ...
    def health(self) -> Sequence[str]: ...


class SyncLease(Protocol):
    """A held lease in a thread."""

    @property
    def token(self) -> int: ...
    @property
    def lost(self) -> bool: ...


class Lease(Protocol):
    """A held lease. `token` grows with every new holder: hand it to what the lease protects (fencing)."""

    @property
    def name(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def lost(self) -> bool: ...
    async def wait_lost(self) -> None: ...


class Store(Protocol):
    """Small shared state of a home.

    The awaitable methods work on any loop; `watch` and `lease` on the background loop.
    """

    @property
    def page(self) -> HomePage:
        """The home's mapped page."""

    @property
    def sync(self) -> SyncStore:
        """The same without coroutines, for threads."""

    async def get(self, key: str) -> Entry | None: ...
    async def put(self, key: str, value: bytes, *, if_revision: int | None = None) -> int: ...
    async def delete(self, key: str, *, if_revision: int | None = None) -> bool: ...
    async def apply(self, writes: Sequence[Write]) -> Revisions: ...
    async def list(self, prefix: str) -> list[tuple[str, Entry]]: ...
    def watch(self, prefix: str, *, since: int | None = None) -> AsyncIterator[Change]: ...
    def lease(self, name: str, ttl: float, *, wait: bool = True) -> AbstractAsyncContextManager[Lease]: ...
    def on_rebuilt(self, callback: Callable[[Rebuilt], Awaitable[None]]) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def revision(self) -> int: ...
    async def keep(self) -> None: ...
    def health(self) -> Sequence[str]: ...
    def close(self) -> None: ...


def check_write(write: Write) -> Write:
    """Refuse a key or value outside the limits, with ValueError or TypeError; returns the write."""
    check_key(write.key)
    if write.value is not None and not isinstance(write.value, bytes):
        raise TypeError(f"the value of '{write.key}' must be bytes, not {type(write.value).__name__}")
    if write.value is not None and len(write.value) > MAX_VALUE:
        raise ValueError(f"the value of '{write.key}' has {len(write.value)} bytes; at most {MAX_VALUE} are kept")
    return write


def check_key(key: str) -> str:
    """Refuse a key that is empty, too long or not plain text, with ValueError or TypeError; returns the key."""
    if not isinstance(key, str):
        raise TypeError(f"a store key must be text, not {type(key).__name__}")
    if not key or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY or not key.isprintable():
        raise ValueError(f"a store key is 1 to {MAX_KEY} bytes of printable text, not {key[:64]!r}")
    return key


def check_ttl(ttl: float) -> float:
    """Refuse a time of a lease that is no number of seconds above 0, with ValueError or TypeError; returns it."""
    if not 0 < ttl < inf:
        raise ValueError(f"a lease lasts some seconds, not {ttl}")
    return ttl


def area_of(key: str) -> str:
    """The area of a key: its first segment."""
    return key.partition("/")[0]


def prefix_end(prefix: str) -> str | None:
    """The smallest text above every text that starts with `prefix`, or None when there is no such bound."""
    for index in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[index]) + 1
        if point == 0xD800:  # the surrogates are no characters
            point = 0xE000
        if point <= 0x10FFFF:
            return prefix[:index] + chr(point)
    return None
