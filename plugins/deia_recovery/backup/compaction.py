"""Many small shipped segments become few: a second of changes each would be 86,400 files a day.

A compacted segment holds the same commits and stands for the last of those that it replaces, so that what follows
still joins. It is written and read again before the small ones go.
"""

from __future__ import annotations

from collections.abc import Iterator

from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.segments import Segment, read_segment, segment_name, span_of, write_segment
from deia_recovery.backup.vault import Vault
from deia_recovery.errors import BackupError, WrongKey

LEAST = 16
"""Fewer segments than this are left as they are."""

MOST = 4 << 20
"""Bytes of changes that a compacted segment holds at most, as one that is shipped."""


def compact(vault: Vault, keys: KeyRing, store: str) -> int:
    """Compact every run of small segments except each generation's last one. Returns how many files went. Blocks."""
    generations: dict[int, list[tuple[int, int, str]]] = {}
    for name in vault.list("segments/"):
        span = span_of(name)
        if span is not None:
            generations.setdefault(span[0], []).append((span[1], span[2], name))
    gone = 0
    for number, spans in generations.items():
        spans.sort()
        for run in _runs(vault, keys, store, number, [name for _, _, name in spans[:-1]]):
            gone += _merge(vault, keys, store, number, run)
    return gone


def _runs(
    vault: Vault, keys: KeyRing, store: str, generation: int, names: list[str]
) -> Iterator[list[tuple[str, Segment]]]:
    """Segments that join each other and together are not too large; what does not verify ends a run and stays."""
    run: list[tuple[str, Segment]] = []
    held = 0
    for name in names:
        segment = _read(vault, keys, store, generation, name)
        size = 0 if segment is None else sum(len(ops) for _, _, ops in segment.entries)
        joins = bool(run) and segment is not None and _joins(run[-1][1], segment)
        if segment is None or not joins or held + size > MOST:
            yield run
            run, held = [], 0
        if segment is not None:
            run.append((name, segment))
            held += size
    yield run


def _joins(before: Segment, after: Segment) -> bool:
    return after.head.after == before.head.last and after.head.before == before.digest


def _read(vault: Vault, keys: KeyRing, store: str, generation: int, name: str) -> Segment | None:
    try:
        segment = read_segment(vault.get(name), keys, name)
    except (BackupError, WrongKey, OSError):
        return None
    return segment if (segment.head.store, segment.head.generation) == (store, generation) else None


def _merge(vault: Vault, keys: KeyRing, store: str, generation: int, run: list[tuple[str, Segment]]) -> int:
    if len(run) < LEAST:
        return 0
    first, last = run[0][1], run[-1][1]
    entries = [entry for _, segment in run for entry in segment.entries]
    data = write_segment(store, generation, first.head.before, first.head.after, entries, keys, stands_for=last.digest)
    name = segment_name(generation, first.head.after, last.head.last)
    vault.replace(name, data)
    if list(read_segment(vault.get(name), keys, name).entries) != entries:
        raise BackupError(f"{name} reads back differently than it was written; the small segments were kept")
    for small, _ in run:
        vault.delete(small)
    return len(run)
