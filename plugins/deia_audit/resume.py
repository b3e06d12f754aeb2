"""Takes the evidence up again at a start: tiles, what came after the checkpoint, a hand-over that was interrupted.

Blocking; under the sealer's lock. What does not fit together is an `EvidenceError`, and nothing is signed then.
"""

from __future__ import annotations

import os
from binascii import hexlify
from collections import deque
from collections.abc import Iterator

import attrs

from deia_audit.checkpoint import Checkpoint
from deia_audit.files import sync_file
from deia_audit.keys import KeyFileError, KeyFolder, epoch_file
from deia_audit.layout import Layout
from deia_audit.notes import NoteError, VerifierKey
from deia_audit.seal import SEALED_ACTION, Seal, parse_statements
from deia_audit.tiles import TILE_WIDTH, Tile, TreeBuilder
from deia_audit.tilestore import TileStore
from deia_audit.tree import HASH_SIZE
from deia_hardening.journal import JournalReader, leaf_hash
from deia_hardening.journal.lines import parse_prefix
from deia_hardening.journal.reader import Record

_SEAL_MARK = b'"action":"' + SEALED_ACTION.encode() + b'"'


class EvidenceError(Exception):
    """The log and its evidence do not fit together; the text says how, what was kept and what to do."""


def unsealed(what: str) -> EvidenceError:
    return EvidenceError(
        f"{what}; what is there was kept and the log goes on unsealed: restore what is missing, or begin a new log "
        "with `audit new-log --reason …`"
    )


@attrs.define
class State:
    """What one tick leaves in memory for the next, valid while the checkpoint on disk is unchanged."""

    origin: str
    log_key: VerifierKey
    builder: TreeBuilder
    checkpoint: Checkpoint
    epoch: int
    epoch_start: int
    stamp: tuple[int, int, int]


class Resuming:
    """The part of a sealer that reads what is there."""

    layout: Layout
    tiles: TileStore
    keys: KeyFolder
    _pending: deque[tuple[int, bytes]]

    def synced(self, through: int) -> None:
        raise NotImplementedError

    def _rebuild(self, checkpoint: Checkpoint) -> TreeBuilder:
        """Make the tiles anew from the log, when its root is still the one that was signed."""
        size = checkpoint.head.size
        reader = JournalReader(self.layout.log)
        segments = reader.segments()
        first = segments[0].first if segments else 0
        builder = TreeBuilder()
        full: list[tuple[Tile, bytes]] = []
        for index in range(-(-first // TILE_WIDTH)):  # pruned records: their leaf tiles are the only evidence
            full += builder.extend(self.tiles.read(Tile(0, index))[: (first - index * TILE_WIDTH) * HASH_SIZE])
        chunk: list[bytes] = []
        for record in reader.records(first):
            if builder.size + len(chunk) >= size:
                break
            chunk.append(leaf_hash(record.line))
            if len(chunk) >= 65536:
                full += builder.extend(b"".join(chunk))
                chunk.clear()
        full += builder.extend(b"".join(chunk))
        if builder.size < size:
            raise unsealed(f"the log holds {builder.size} records, its checkpoint is of {size}: the end is missing")
        if builder.root() != checkpoint.head.root:
            raise unsealed(
                f"the first {size} records are not those that were signed; `audit verify` names the first bad one"
            )
        self.tiles.write([*full, *builder.partials()])
        return builder

    def _scan(self, start: int) -> list[tuple[int, str]]:
        """Read what came after the checkpoint: queue its hashes, make it durable, return the seals in it."""
        self._pending_reset(start)
        leaves: list[bytes] = []
        seals: list[tuple[int, str]] = []
        for record, leaf in self._chained(start):
            leaves.append(leaf)
            if _SEAL_MARK in record.line:
                event = record.event()
                if event.get("action") == SEALED_ACTION and "seal" in event:
                    seals.append((record.seq, str(event["seal"])))
        if leaves:
            self._sync_log()
            self._pending.appendleft((start, b"".join(leaves)))
            self.synced(start + len(leaves) - 1)
        elif start:
            self._check_end(start)
        return seals

    def _chained(self, start: int) -> Iterator[tuple[Record, bytes]]:
        """Yield the records from `start` on with their hashes, up to where the chain breaks.

        What a power cut tore stands in the log until the journal's first write sets it aside, whole lines behind it
        too; it must not come under a checkpoint.
        """
        seq = max(start - 1, 0)
        previous: bytes | None = None
        for record in JournalReader(self.layout.log).records(seq):
            prefix = parse_prefix(record.line)
            if prefix is None or record.seq != seq or b"\0" in record.line:
                return
            if previous is not None and prefix.prev != hexlify(previous):
                return
            previous = leaf_hash(record.line)
            if seq >= start:
                yield record, previous
            seq += 1

    def _check_end(self, size: int) -> None:
        if JournalReader(self.layout.log).get(size - 1) is None:
            raise unsealed(f"the log ends before record {size - 1}, which its checkpoint covers")

    def _pending_reset(self, start: int) -> None:
        while self._pending and self._pending[0][0] + len(self._pending[0][1]) // HASH_SIZE <= start:
            self._pending.popleft()

    def _sync_log(self) -> None:
        descriptor = os.open(self.layout.log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _settle_epoch(self, seals: list[Seal]) -> int:
        """Finish a hand-over that a crash interrupted: the key that the log names stays, the other goes."""
        epochs = self.keys.epochs()
        if not epochs:
            raise KeyFileError(
                f"the key of the present epoch is missing from {self.keys.folder}; the log was kept and goes on "
                "unsealed: restore the key, or begin a new log with `audit new-log --reason …`"
            )
        present = epochs[-1]
        if len(epochs) > 1:
            handed_over = any(seal.epoch == present - 1 for seal in seals)
            if not handed_over:
                self.keys.destroy(epoch_file(present))
                present -= 1
            for epoch in epochs:
                if epoch < present:
                    self.keys.destroy(epoch_file(epoch))
        self.keys.load(epoch_file(present))
        return present

    def _last_seal_size(self) -> int:
        try:
            statements = parse_statements(self.layout.seals.read_bytes())
            return max((Seal.parse(one.text)[0].size for one in statements if not one.opening), default=0)
        except (OSError, NoteError):
            return 0
