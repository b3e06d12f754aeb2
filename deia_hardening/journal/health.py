"""What a journal says of itself: whether it writes, and its counts. Both are plain values, taken at one moment."""

from __future__ import annotations

import attrs


@attrs.frozen
class JournalHealth:
    """Whether the journal writes. `state` is ok, full, failing or fenced; `since` is seconds since the epoch."""

    ok: bool
    state: str
    detail: str
    since: float


@attrs.frozen
class JournalStats:
    """Counts since the process began, and what waits now."""

    records: int
    bytes: int
    batches: int
    syncs: int
    failures: int
    dropped: int
    rotations: int
    queued: int
    queued_bytes: int
    durable_through: int
