"""What the engine can be told. The plugin makes it from its settings; tests and tools make their own."""

from __future__ import annotations

import attrs


@attrs.frozen
class EngineOptions:
    """Numbers of the engine. Sizes in bytes, times in seconds."""

    group: int = 512
    """Writes that one commit takes at most."""
    idle: float = 1.0
    """After this long without work the thread ends and every descriptor is closed."""
    cache: int = 64 << 20
    """Memory for registry values, per process."""
    log_limit: int = 16 << 20
    """The write-ahead log is moved into the database when it has grown to this. A page that was written many times is
    hashed and moved once; but twice the log saved some 5% of a write's CPU, and cost a start after a crash 1 s more."""
    log_reserve: int = 4 << 20
    """Bytes of log laid out in advance, so that commits overwrite and don't extend the file."""
    reserve: int = 32 << 20
    """Free space below which new entries and tasks are refused, so that what runs can still be completed."""
    busy: float = 10.0
    """How long to wait for another program that holds the database's write lock."""
    transaction: float = 5.0
    """How long `transaction()` may stay open."""
    keep_changes: int = 10_000
    """Positions that stay in the change log after they were shipped."""
    readers: int = 8
    """Connections for reading, per process."""
