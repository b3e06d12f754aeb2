"""Segments: committed changes between snapshots, as shipped. Authenticated, chained, optionally encrypted.

A segment holds the log entries after `after` up to `last`. It joins another exactly when it begins where that one
ends and names its digest, so a gap, a swap or a branch is seen before anything is applied.
"""

from __future__ import annotations

import hashlib

import attrs
import msgspec

from deia_recovery.backup.chunks import pack, unpack
from deia_recovery.backup.keys import KeyRing
from deia_recovery.errors import BackupError, WrongKey

Entry = tuple[int, int, bytes]
"""(position after it, milliseconds of Unix time, encoded changes): one commit."""

_entries = msgspec.msgpack.Decoder(list[Entry]).decode


@attrs.frozen
class SegmentHead:
    """What a segment says of itself. `before` is the digest of the one it follows ("" at a generation's begin);
    `stands_for`, of a compacted one, that of the last one it replaces."""

    store: str
    generation: int
    after: int
    last: int
    first_at: int
    last_at: int
    before: str
    body: str
    key_id: str
    format: int = 1
    stands_for: str = ""


@attrs.frozen
class Segment:
    """A segment as read and checked."""

    head: SegmentHead
    entries: tuple[Entry, ...]
    digest: str


def segment_name(generation: int, after: int, last: int) -> str:
    return f"segments/g{generation:06d}/{after:016d}-{last:016d}.seg"


def span_of(name: str) -> tuple[int, int, int] | None:
    """(generation, after, last) that a name tells; None for another name. The content decides, not the name."""
    try:
        _, folder, file = name.rsplit("/", 2)
        after, _, last = file.removesuffix(".seg").partition("-")
        if not (folder.startswith("g") and file.endswith(".seg")):
            return None
        return int(folder[1:]), int(after), int(last)
    except ValueError:
        return None


def write_segment(
    store: str,
    generation: int,
    before: str,
    after: int,
    entries: list[Entry],
    keys: KeyRing,
    *,
    stands_for: str = "",
) -> bytes:
    """The bytes of a segment: head, MAC over head and body, body."""
    name, body = pack(msgspec.msgpack.encode(entries), keys)
    first, last = entries[0], entries[-1]
    head = msgspec.json.encode(
        SegmentHead(store, generation, after, last[0], first[1], last[1], before, name, keys.id, stands_for=stands_for)
    )
    mac = keys.mac(head + b"\n" + body).encode()
    return head + b"\n" + mac + b"\n" + body


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_segment(data: bytes, keys: KeyRing, where: str) -> Segment:
    """Check everything and decode. Raises WrongKey, BackupError."""
    line, _, rest = data.partition(b"\n")
    mac, _, body = rest.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=SegmentHead)
    except (msgspec.DecodeError, ValueError) as error:
        raise BackupError(f"{where} is not a segment: {error}") from error
    if head.key_id != keys.id:
        raise WrongKey(f"{where} was made with the key {head.key_id!r}, the present one is {keys.id!r}")
    if not keys.verify(line + b"\n" + body, mac.decode("ascii", "replace")):
        raise BackupError(f"{where} was changed since it was written: its MAC does not fit")
    try:
        entries = tuple(_entries(unpack(head.body, body, keys)))
    except (ValueError, msgspec.DecodeError) as error:
        raise BackupError(f"{where}: {error}") from error
    if not entries or entries[-1][0] != head.last:
        raise BackupError(f"{where} contradicts itself")
    return Segment(head, entries, head.stands_for or digest_of(data))
