"""Where a process stands in a log: what it remembers of the live file, and how it knows that one from others."""

from __future__ import annotations

import attrs

from deia_hardening.journal.lines import Header
from deia_hardening.journal.repair import Found


@attrs.define
class Position:
    """Where the live file ends, as far as this process knows, and up to where it is on disk (-1: unknown).

    `head` is the file's first line as it stood there, newline included.
    """

    device: int
    inode: int
    header: Header
    head: bytes
    size: int
    next_seq: int
    prev: bytes
    began_ns: int
    synced_size: int = -1
    synced_seq: int = -1


@attrs.frozen
class Known:
    """The end of the log as this process last saw it; a file that ends earlier is not ours any more."""

    origin: str
    segment: int
    next_seq: int
    prev: bytes


def older(found: Found, known: Known) -> bool:
    """Whether a file is not the log that this process knows, or an earlier state of it."""
    header = found.header
    if header.origin != known.origin:
        return True
    return header.segment < known.segment or (header.segment == known.segment and found.tail.next_seq < known.next_seq)
