"""Keeps the evidence up with the journal: tiles, checkpoints and hand-overs of keys, off the request path.

Blocking; `tick` runs on a core-owned thread and may be called by every worker of a home: one at a time holds
the lock, finds the state on disk and carries on from there. A checkpoint covers only records known to be on
disk. When the log and its evidence do not fit together nothing is signed any more: the problem is kept for
health, the journal goes on.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deia_audit.checkpoint import Checkpoint, TreeHead, open_checkpoint, sign_checkpoint
from deia_audit.files import make_folders, put_in_place, replace_file, sync_folder
from deia_audit.keys import LOG_KEY, KeyFileError, KeyFolder, epoch_file
from deia_audit.layout import Layout
from deia_audit.newlog import told_previous
from deia_audit.notes import NoteError, Signer, VerifierKey
from deia_audit.resume import EvidenceError, Resuming, State, unsealed
from deia_audit.seal import (
    OPENED_ACTION,
    SEALED_ACTION,
    EpochPolicy,
    Opening,
    Seal,
    Statement,
    epoch_name,
    make_origin,
    parse_statements,
)
from deia_audit.tiles import Tile, TreeBuilder, partial_tiles_of
from deia_audit.tilestore import TileError, TileStore
from deia_audit.tree import EMPTY_ROOT, HASH_SIZE
from deia_hardening.clock import Clock
from deia_hardening.ids import uuid7
from deia_hardening.journal import Batch, Journal, JournalError, JournalReader, Receipt, leaf_hash
from deia_hardening.locks import lock, unlock
from deia_hardening.turns import turns

_PART = 3
"""Full tiles that are hashed in one part of the work, while a busy loop stands aside; 0.1 ms each."""
_MOST = 1024
"""Full tiles that are held before they are written, 8 KiB each, when very many records wait."""
_OPEN_MARK = b'"action":"' + OPENED_ACTION.encode() + b'"'


class Crash(Protocol):
    """Called between the steps that must survive a kill, with the step's name.

    Tests kill the process there.
    """

    def __call__(self, step: str) -> None: ...


def _no_crash(step: str) -> None:
    """Do nothing: the step is passed."""


class Sealer(Resuming):
    """The evidence of one trail. `written` and `synced` are the journal's callbacks; `tick` does the work."""

    def __init__(
        self,
        layout: Layout,
        journal: Journal,
        base: str,
        policy: EpochPolicy,
        clock: Clock,
        *,
        crash: Crash = _no_crash,
        wait: float = 30.0,
    ) -> None:
        self.layout = layout
        self.problem = ""
        self.tiles = TileStore(layout.evidence)
        self.keys = KeyFolder(layout.keys)
        self.on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None
        self._journal = journal
        self._base = base
        self.policy = policy
        self._clock = clock
        self._crash = crash
        self._wait = wait
        self._mutex = threading.Lock()
        self._pending: deque[tuple[int, bytes]] = deque()
        self._synced = -1
        self._state: State | None = None
        self._started = clock.monotonic()

    # -- the journal's callbacks, on its writer thread

    def written(self, batch: Batch) -> None:
        """Take a batch that was written; a join of hashes, no more."""
        self._pending.append((batch.first, b"".join(batch.leaves)))

    def synced(self, through: int) -> None:
        """Remember that all records up to `through` are on disk."""
        if through > self._synced:
            self._synced = through

    # -- reading

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that this process knows."""
        state = self._state
        return state.checkpoint if state is not None else None

    @property
    def epoch(self) -> int:
        """The epoch that is open, as this process knows it."""
        state = self._state
        return state.epoch if state is not None else 0

    @property
    def behind(self) -> bool:
        """Whether records wait for a checkpoint."""
        return bool(self._pending)

    # -- the work

    def open(self) -> None:
        """Take up the evidence, or make that of a new log, before anything is recorded; waits for other workers."""
        self._work(fcntl.LOCK_EX)

    def finish(self) -> None:
        """Write and seal everything that was recorded."""
        for _round in range(8):
            self._journal.drain(self._wait)
            self._work(fcntl.LOCK_EX)
            if not self.behind or self.problem:
                return

    def tick(self) -> Checkpoint | None:
        """Bring the evidence up to what is durable; returns a new checkpoint, or None when there was none to make.

        Never raises for what is wrong with the evidence: `problem` says it. Returns None when another worker is at
        it; call again.
        """
        return self._work(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _work(self, how: int) -> Checkpoint | None:
        with self._mutex:
            try:
                make_folders(self.layout.evidence)
                descriptor = os.open(self.layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    try:
                        lock(descriptor, how)
                    except BlockingIOError:
                        return None
                    checkpoint = self._locked()
                finally:
                    unlock(descriptor)
                self.problem = ""
            except (EvidenceError, KeyFileError, NoteError, TileError, JournalError, OSError) as error:
                self._state = None
                self.problem = str(error)
                return None
        if checkpoint is not None:
            self.on_checkpoint(checkpoint)
        return checkpoint

    def _locked(self) -> Checkpoint | None:
        state = self._current()
        before = state.builder.size
        full = self._feed(state)
        made = None
        if state.builder.size > state.checkpoint.head.size:
            made = self._sign(state, full)
        sealed = max(state.builder.size - state.epoch_start, 0)
        if state.builder.size > before and self.policy.over(sealed, self._clock.monotonic() - self._started):
            self._hand_over(state)
        return made

    def _current(self) -> State:
        state = self._state
        if state is None or state.stamp != self._stamp() or self.keys.epochs() != [state.epoch]:
            state = self._state = self._load() if self.layout.checkpoint.exists() else self._begin()
        return state

    def _stamp(self) -> tuple[int, int, int]:
        try:
            info = self.layout.checkpoint.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        return (info.st_ino, info.st_mtime_ns, info.st_size)

    # -- a new log

    def _begin(self) -> State:
        """Make keys, origin and the checkpoint of the empty tree, then open the log with its first statement."""
        if next(iter(JournalReader(self.layout.log).records(0)), None) is not None:
            raise unsealed(f"the log {self.layout.log} has records, but its checkpoint is missing")
        if self.keys.begun():
            raise unsealed(f"a log was begun here, but log and evidence are gone from {self.layout.evidence}")
        previous, told = told_previous(self.layout)
        log, first = self._key(LOG_KEY), self._key(epoch_file(0))
        origin = make_origin(self._base, _public(log), _public(first))
        log_signer, first_signer = Signer(origin, log), Signer(epoch_name(origin, 0), first)
        self._crash("keys")
        head = TreeHead(origin, 0, EMPTY_ROOT)
        checkpoint = sign_checkpoint(head, [log_signer, first_signer])
        opening = Opening(origin, log_signer.verifier, first_signer.verifier, previous)
        replace_file(self.layout.vkey, f"{log_signer.verifier}\n".encode())
        statement = Statement(-1, opening.sign(log_signer, first_signer))
        replace_file(self.layout.seals, statement.encode())
        replace_file(self.layout.checkpoint, str(checkpoint).encode())
        self._crash("begun")
        self.keys.mark_begun(origin)
        state = self._load()
        if told:
            self._append({"action": "audit.new-log", **told})
        return state

    def _key(self, name: str) -> Ed25519PrivateKey:
        try:
            return self.keys.load(name)
        except KeyFileError:
            return self.keys.generate(name)

    # -- resuming

    def _load(self) -> State:
        log_key = VerifierKey.parse(self.layout.vkey.read_text())
        checkpoint = open_checkpoint(self.layout.checkpoint.read_bytes(), [log_key], log_key.name)
        size, root = checkpoint.head.size, checkpoint.head.root
        try:
            builder = TreeBuilder.resume(size, self.tiles.partials(size))
        except (ValueError, TileError):
            builder = self._rebuild(checkpoint)
        if builder.root() != root:
            builder = self._rebuild(checkpoint)
        for stray in self.tiles.strays(size):
            stray.unlink(missing_ok=True)
        told = self._scan(size)
        seals = [Seal.parse(text)[0] for _seq, text in told]
        self._copy_seals(told)
        epoch = self._settle_epoch(seals)
        epoch_start = max((seal.size for seal in seals), default=self._last_seal_size())
        state = State(log_key.name, log_key, builder, checkpoint, epoch, epoch_start, self._stamp())
        if not self.keys.begun():
            self.keys.mark_begun(log_key.name)
        if size == 0:
            self._open_log(state)
        return state

    def _open_log(self, state: State) -> None:
        """Append the opening, unless a start that was killed had done so."""
        text = parse_statements(self.layout.seals.read_bytes())[0].text
        for record in JournalReader(self.layout.log).records(0):
            if _OPEN_MARK in record.line and record.event().get("opening") == text:
                return
        receipt = self._append({"action": OPENED_ACTION, "origin": state.origin, "opening": text})
        if not receipt.wait(self._wait):
            raise EvidenceError("the opening of the log could not be made durable; it is tried again")

    def _append(self, event: dict[str, object]) -> Receipt:
        members = {"id": uuid7(), "kind": "system", "outcome": "success", "level": "info", **event}
        return self._journal.append_body(msgspec.json.encode(members)[1:-1])

    # -- going on

    def _feed(self, state: State) -> list[tuple[Tile, bytes]]:
        """Give the tree the durable records, reading from the log what no callback brought; return what became full."""
        through = self._synced + 1
        builder = state.builder
        full: list[tuple[Tile, bytes]] = []
        parts = 0
        while self._pending:
            first, leaves = self._pending[0]
            end = first + len(leaves) // HASH_SIZE
            if first > builder.size:
                missing = self._read(builder.size, first)
                self._pending.appendleft((builder.size, missing))
                continue
            stop = min(end, through)
            if stop > builder.size:
                full += builder.extend(leaves[(builder.size - first) * HASH_SIZE : (stop - first) * HASH_SIZE])
                if len(full) >= parts + _PART:
                    parts = len(full)
                    turns.part()
                if len(full) >= _MOST:
                    self.tiles.write(full)
                    full.clear()
                    parts = 0
            if end > through:
                break
            self._pending.popleft()
        return full

    def _read(self, start: int, end: int) -> bytes:
        leaves = []
        for record in JournalReader(self.layout.log).records(start):
            if record.seq >= end:
                break
            leaves.append(leaf_hash(record.line))
        if len(leaves) != end - start:
            raise EvidenceError(f"records {start + len(leaves)} to {end - 1} can't be read from the log")
        return b"".join(leaves)

    def _sign(self, state: State, full: list[tuple[Tile, bytes]]) -> Checkpoint:
        builder, before = state.builder, state.checkpoint.head.size
        head = TreeHead(state.origin, builder.size, builder.root())
        signers = [
            Signer(state.origin, self.keys.load(LOG_KEY)),
            Signer(epoch_name(state.origin, state.epoch), self.keys.load(epoch_file(state.epoch))),
        ]
        checkpoint = sign_checkpoint(head, signers)
        stored = partial_tiles_of(before)
        tiles = full + [(tile, data) for tile, data in builder.partials() if tile not in stored]
        self.tiles.write(tiles, [(self.layout.checkpoint, str(checkpoint).encode())])
        self._crash("tiles")
        put_in_place([str(self.layout.checkpoint)])
        sync_folder(self.layout.evidence)
        state.checkpoint = checkpoint
        state.stamp = self._stamp()
        self._crash("checkpoint")
        self.tiles.drop_partials(tile for tile in stored if tile.full_in(builder.size))
        return checkpoint

    def _hand_over(self, state: State) -> None:
        """End the epoch: next key durable, hand-over durable, old key destroyed; a kill between is settled at
        start.
        """
        present = Signer(epoch_name(state.origin, state.epoch), self.keys.load(epoch_file(state.epoch)))
        following = Signer(epoch_name(state.origin, state.epoch + 1), self.keys.generate(epoch_file(state.epoch + 1)))
        self._crash("next-key")
        head = state.checkpoint.head
        seal = Seal(state.origin, state.epoch, head.size, head.root, following.verifier)
        text = seal.sign(present)
        receipt = self._append({"action": SEALED_ACTION, "epoch": state.epoch, "seal": text})
        if not receipt.wait(self._wait):
            raise EvidenceError("the hand-over to the next key is not known to be durable; the next try settles it")
        self._crash("hand-over")
        self.keys.destroy(epoch_file(state.epoch))
        self._crash("destroyed")
        self._copy_seals([(receipt.seq or 0, text)])
        state.epoch += 1
        state.epoch_start = head.size
        self._started = self._clock.monotonic()

    def _copy_seals(self, told: list[tuple[int, str]]) -> None:
        """Keep copies of seals beside the log, for when retention takes their records; a known one is left out."""
        try:
            have = self.layout.seals.read_bytes()
        except FileNotFoundError:
            have = b""
        new = [entry for seq, text in told if (entry := Statement(seq, text).encode()) not in have]
        if new:
            replace_file(self.layout.seals, have + b"".join(new))

    def seal_now(self) -> Checkpoint | None:
        """Make a checkpoint and hand over to a new key at once, whatever the policy says."""
        self.tick()
        policy, self.policy = self.policy, EpochPolicy(1, 0.0)
        try:
            with self._mutex:
                state = self._state
                if state is not None:
                    state.epoch_start = min(state.epoch_start, max(state.builder.size - 1, 0))
            self._append({"action": "audit.seal-requested"}).wait(self._wait)
            self.tick()
        finally:
            self.policy = policy
        return self.tick()


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
