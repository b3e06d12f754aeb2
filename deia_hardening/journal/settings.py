"""What an operator may set about a journal: durability, bounds, segments and retention.

Every plugin's section holds one of these for its own log, so the five logs are tuned one by one.
"""

from __future__ import annotations

import attrs

from deia_hardening.settings.fields import setting
from deia_hardening.settings.units import Bytes, Seconds


@attrs.frozen
class JournalSettings:
    """One journal's settings. The defaults suit a service that writes up to some 10,000 records a second."""

    durability: str = setting(
        "batch",
        "when a record counts as durable: 'sync' after an fdatasync that starts at once, 'batch' after the next "
        "periodic fdatasync (a waiter brings it forward), 'none' when handed to the operating system",
        choices=("sync", "batch", "none"),
    )
    write_interval: Seconds = setting(
        Seconds("20ms"), "how long records gather before one write; killing the process loses at most this", ge=0, le=10
    )
    sync_interval: Seconds = setting(
        Seconds("200ms"), "longest time between a write and its fdatasync in 'batch'; a power cut loses at most this",
        ge=0, le=3600,
    )  # fmt: skip
    sync_bytes: Bytes = setting(
        Bytes("4MiB"), "unsynced bytes that bring an fdatasync forward; as much of a log's end is examined at start",
        ge=65536, le=1 << 30,
    )  # fmt: skip
    batch_bytes: Bytes = setting(
        Bytes("4MiB"), "most bytes written at once, under the lock that other processes wait for", ge=65536, le=1 << 30
    )
    max_records: int = setting(100_000, "records that may wait for the writer", ge=1)
    max_bytes: Bytes = setting(Bytes("64MiB"), "bytes that may wait for the writer", ge=65536)
    on_full: str = setting(
        "gap",
        "what happens to a record when the queue is full: 'gap' drops and counts it in a gap record, 'block' holds "
        "the caller's thread, 'refuse' raises JournalFull",
        choices=("gap", "block", "refuse"),
    )
    field_bytes: Bytes = setting(Bytes("1KiB"), "longest text of one field; longer is cut and marked", ge=16, le=65536)
    record_bytes: Bytes = setting(
        Bytes("16KiB"), "largest record; the largest fields of a larger one are dropped and marked", ge=256, le=65536
    )
    segment_bytes: Bytes = setting(Bytes("64MiB"), "size at which a segment is sealed and a new one begun", ge=4096)
    segment_age: Seconds = setting(Seconds("7d"), "age at which a segment is sealed; 0 never", ge=0)
    compression: str = setting("gzip", "how sealed segments are stored", choices=("gzip", "none"))
    retain_age: Seconds = setting(Seconds(0), "sealed segments older than this are deleted; 0 keeps them", ge=0)
    retain_bytes: Bytes = setting(
        Bytes("10GiB"), "bytes of sealed segments that are kept, the newest first; 0 keeps all", ge=0
    )
    reserve: Bytes = setting(Bytes("64MiB"), "free disk space that the journal leaves to the service's state", ge=0)
    at_reserve: str = setting(
        "stop",
        "what happens when the free space falls below `reserve`: 'stop' handles it as a full disk, 'prune' deletes "
        "the oldest sealed segments first",
        choices=("stop", "prune"),
    )
    idle_close: Seconds = setting(
        Seconds("1s"), "an idle journal gives back its thread and descriptor after this", ge=0, le=3600
    )
    retry_interval: Seconds = setting(
        Seconds("500ms"), "first pause after a failed write, doubled with each further one", ge=0.001, le=3600
    )
    retry_limit: Seconds = setting(Seconds("10s"), "longest pause between two tries to write", ge=0.001, le=3600)
