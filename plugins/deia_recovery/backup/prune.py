"""Removing what retention lets go. Manifests first, then chunks and segments that nothing needs any more.

It needs no room, so it works on a full disk. What is unreferenced stays for the grace period, since a snapshot that
is just being taken refers to chunks before its manifest is there.
"""

from __future__ import annotations

from typing import Protocol

from deia_recovery.backup.manifest import manifest_name
from deia_recovery.backup.restore import Catalog
from deia_recovery.backup.retention import Kept, Rules, to_remove
from deia_recovery.backup.segments import span_of
from deia_recovery.backup.vault import chunk_name


class Proven(Protocol):
    """What pruning asks about proofs."""

    @property
    def verified(self) -> dict[str, float]: ...

    @property
    def failed(self) -> dict[str, str]: ...


def prune(catalog: Catalog, rules: Rules, *, proven: Proven, grace: float, now: float) -> dict[str, int]:
    """Prune one store's backups. Returns how many snapshots, chunks and segments went."""
    manifests = catalog.manifests()
    if catalog.refused:
        # what can't be read may refer to anything: remove no chunk that it could need
        return {"snapshots": 0, "chunks": 0, "segments": 0}
    going = set(
        to_remove(
            (
                Kept(
                    one.id,
                    one.taken,
                    one.what,
                    one.whole,
                    one.id in proven.verified and one.id not in proven.failed,
                )
                for one in manifests
            ),
            rules,
        )
    )
    vault = catalog.vault
    for snapshot in going:
        vault.delete(manifest_name(snapshot))
    staying = [one for one in manifests if one.id not in going]
    needed = {chunk_name(ref.name) for one in staying for ref in one.chunks()}
    chunks = 0
    for name in list(vault.list("chunks/")):
        if name not in needed and vault.age(name, now) > grace:
            vault.delete(name)
            chunks += 1
    whole = [one for one in staying if one.whole]
    segments = 0
    if whole:
        oldest = min(whole, key=lambda one: (one.generation, one.position))
        for name in list(vault.list("segments/")):
            span = span_of(name)
            if span is not None and (
                span[0] < oldest.generation or (span[0] == oldest.generation and span[2] <= oldest.position)
            ):
                vault.delete(name)
                segments += 1
    return {"snapshots": len(going), "chunks": chunks, "segments": segments}
