"""Writes a trail as a static C2SP tlog-tiles log: checkpoint, tiles, entry bundles, verifier key. Blocking.

Any web server can serve the folder, and verifiers that know nothing of this package read it. Records that retention
took have no bundles any more; their tiles stay.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.tiles import TILE_WIDTH, encode_bundle, entries_path
from deia_hardening.journal import JournalReader


def export_tlog(layout: Layout, target: Path) -> int:
    """Write the log as it stands at its newest checkpoint into the folder `target`; how many entries it holds."""
    data = layout.checkpoint.read_bytes()
    size = Checkpoint.parse(data).head.size
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        layout.evidence / "tile",
        target / "tile",
        ignore=shutil.ignore_patterns("*.new"),
        copy_function=_copy,
        dirs_exist_ok=True,
    )
    reader = JournalReader(layout.log)
    segments = reader.segments()
    first = max(segments[0].first, 0) if segments else 0
    start = -(-first // TILE_WIDTH) * TILE_WIDTH  # a bundle is whole or not there
    bundle: list[bytes] = []
    for record in reader.records(start, size):
        bundle.append(record.line)
        if len(bundle) == TILE_WIDTH or record.seq == size - 1:
            path = target / entries_path(record.seq // TILE_WIDTH, len(bundle))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_bundle(bundle))
            bundle.clear()
    (target / "checkpoint").write_bytes(data)
    shutil.copy(layout.vkey, target / "vkey")
    return max(size - start, 0)


def _copy(source: str, target: str) -> None:
    """Copy a tile, unless its full one has just taken its place."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(source, target)
