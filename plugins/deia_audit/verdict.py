"""What is wrong with a trail, by name, and where it begins. Pure.

The classification compares what stands in the log with what the stored leaf hashes say should stand there; beyond
those, the chain itself (each record's number and the hash of the one before) is all there is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import attrs

WINDOW = 4096
"""Records behind the first bad one that are looked at to name what happened."""


class Verdict(enum.StrEnum):
    """The outcome of a verification. All but the first two, and TORN_TAIL, mean that the trail is not as written."""

    OK_WITNESSED = "OK-WITNESSED"
    """Everything fits, up to a head that is vouched for by a key that is not in this home."""
    OK_LOCAL_ONLY = "OK-LOCAL-ONLY"
    """Everything fits, by keys of this home only: whoever holds those, or put back an old copy, is not seen."""
    ALTERED = "ALTERED"
    """A record, or evidence beside it, is not what was written."""
    INSERTED = "INSERTED"
    """A record stands where none was written."""
    REORDERED = "REORDERED"
    """Records stand in another order than they were written."""
    TRUNCATED = "TRUNCATED"
    """Records that were written are missing, at the end or in between."""
    FORKED = "FORKED"
    """Another history was signed than the one that a head held elsewhere speaks of."""
    STALE = "STALE"
    """Log and evidence fit together but are older than a head held elsewhere: an old copy was put back."""
    UNSEALED = "UNSEALED"
    """A checkpoint or a seal is missing, damaged, or by a key that could not have made it."""
    TORN_TAIL = "TORN-TAIL"
    """The end, which no checkpoint covers, was torn by a crash; the next start saves it aside and goes on."""

    @property
    def ok(self) -> bool:
        return self in (Verdict.OK_WITNESSED, Verdict.OK_LOCAL_ONLY)


@attrs.frozen(slots=True)
class Line:
    """What a line shows of itself: its number and previous hash (None where they can't be read), and its leaf hash."""

    seq: int | None
    prev: bytes | None
    leaf: bytes


Expected = Callable[[int], "bytes | None"]
"""The stored leaf hash of a record, or None where none is stored."""


def find_bad(lines: Sequence[Line], start: int, before: bytes | None, expected: Expected) -> int | None:
    """Return the place in `lines` of the first line that does not fit, or None.

    `lines[0]` should be record `start`; `before` is the leaf hash of the record before it (None: not known).
    """
    previous = before
    for place, line in enumerate(lines):
        seq = start + place
        if line.seq != seq or (previous is not None and line.prev != previous):
            return place
        stored = expected(seq)
        if stored is not None and stored != line.leaf:
            return place
        previous = line.leaf
    return None


def classify(
    lines: Sequence[Line], start: int, place: int, before: bytes | None, expected: Expected
) -> tuple[Verdict, int]:
    """Name what happened at `lines[place]`, which `find_bad` found, and the record at which it begins."""
    seq = start + place
    line = lines[place]
    stored = expected(seq)
    if stored is not None:
        return _by_hashes(lines, seq, place, stored, expected), seq
    following = lines[place + 1] if place + 1 < len(lines) else None
    if line.seq is None:
        return Verdict.ALTERED, seq
    if line.seq == seq:
        attested = following is not None and following.prev == line.leaf
        return Verdict.ALTERED, seq - 1 if attested and place > 0 else seq
    behind = range(place + 1, min(len(lines), place + WINDOW))
    if line.seq > seq:
        if any(lines[at].seq == seq for at in behind):
            return Verdict.REORDERED, seq
        return (Verdict.ALTERED if following is not None and following.seq == seq + 1 else Verdict.TRUNCATED), seq
    if following is not None and following.seq == seq + 1 and following.prev == line.leaf:
        return Verdict.ALTERED, seq
    return Verdict.INSERTED, min(line.seq, seq)


def _by_hashes(lines: Sequence[Line], seq: int, place: int, stored: bytes, expected: Expected) -> Verdict:
    """Name what happened from where the expected record went and where the present one came from."""
    leaf = lines[place].leaf
    here = {one.leaf: at for at, one in reversed(list(enumerate(lines[place + 1 : place + WINDOW])))}
    moved_back = stored in here
    came_from = next((at for at in range(seq + 1, seq + WINDOW) if expected(at) == leaf), None)
    if moved_back:
        twice = leaf in here
        return Verdict.INSERTED if came_from is None or twice else Verdict.REORDERED
    return Verdict.ALTERED if came_from is None else Verdict.TRUNCATED
