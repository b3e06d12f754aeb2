"""Small shared state of a home: compare-and-set, watches, leases, and the page that workers look at."""

from deia_hardening.store.base import (
    Backend,
    Change,
    Entry,
    Lease,
    LeaseHeld,
    Rebuilt,
    StaleRevision,
    Store,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    SyncStore,
    WatchExpired,
    Write,
)
from deia_hardening.store.epoch import PAGE_WORD, HomePage, PageState
from deia_hardening.store.face import SharedStore, open_backend, open_store
from deia_hardening.store.settings import StoreSettings

__all__ = [
    "PAGE_WORD",
    "Backend",
    "Change",
    "Entry",
    "HomePage",
    "Lease",
    "LeaseHeld",
    "PageState",
    "Rebuilt",
    "SharedStore",
    "StaleRevision",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreSettings",
    "StoreUnavailable",
    "SyncStore",
    "WatchExpired",
    "Write",
    "open_backend",
    "open_store",
]
