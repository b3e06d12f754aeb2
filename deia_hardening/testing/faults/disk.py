"""A disk that forgets what was not flushed: what a folder may hold after a power cut at any point of a trace.

The model is what POSIX promises and no more. Bytes of a file are safe once an fsync or fdatasync of it that began
later has returned; until then any of their 512-byte sectors may be there, or not, in any order, and a file may have
its new length without its new bytes (zeros). Names are safe once an fsync of their folder has returned; until then
a folder keeps some beginning of its changes (file systems log names in order), or, with `strict`, any part of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.testing.faults.trace import (
    Create,
    Link,
    Mark,
    Operation,
    Rename,
    SyncBegin,
    SyncEnd,
    Trace,
    Truncate,
    Unlink,
    Write,
)

SECTOR = 512
KINDS = ("cut", "torn", "reordered")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class _Node:
    """A file: its bytes on the disk, and the changes since."""

    def __init__(self, content: bytes = b"") -> None:
        self.safe = bytearray(content)
        self.pending: list[Write | Truncate] = []

    def flush(self, count: int) -> None:
        for change in self.pending[:count]:
            _apply(self.safe, change)
        del self.pending[:count]


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        if change.size < len(content):
            del content[change.size :]
        else:
            content.extend(bytes(change.size - len(content)))
        return
    end = change.offset + len(change.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.data


class _State:
    """The disk at one point of a trace: what is safe, and what is pending."""

    def __init__(self, before: dict[str, bytes | None]) -> None:
        self.nodes: dict[int, _Node] = {}
        self.names: dict[str, int] = {}  # as running programs see them; -1 for a folder
        self.safe_names: dict[str, int] = {}
        self.name_changes: list[tuple[str, Operation, int]] = []  # the folder that must be synced, the change
        self.folders: dict[int, str] = {}
        self.marks: list[Any] = []
        self._syncs: dict[int, tuple[int, int]] = {}
        self._next = -2
        for path, content in before.items():
            if content is None:
                self.names[path] = -1
            else:
                self.nodes[self._next] = _Node(content)
                self.names[path] = self._next
                self._next -= 1
        self.safe_names.update(self.names)

    def step(self, operation: Operation) -> None:
        if isinstance(operation, Mark):
            self.marks.append(operation.what)
        elif isinstance(operation, Create):
            if operation.folder:
                self.folders[operation.node] = operation.path
                self.names[operation.path] = -1
            else:
                existing = self.names.get(operation.path)
                if existing is not None and existing < -1:  # it was there before the recording began
                    self.nodes[operation.node] = self.nodes[existing]
                    self._renumber(existing, operation.node)
                    return
                self.nodes.setdefault(operation.node, _Node())
                self.names[operation.path] = operation.node
            self.name_changes.append((_parent(operation.path), operation, operation.node))
        elif isinstance(operation, Write | Truncate):
            self.nodes.setdefault(operation.node, _Node()).pending.append(operation)
        elif isinstance(operation, Rename):
            node = self.names.pop(operation.source, None)
            if node is None:
                return
            inside = operation.source + "/"
            for name in [name for name in self.names if name.startswith(inside)]:
                self.names[operation.target + "/" + name[len(inside) :]] = self.names.pop(name)
            self.names[operation.target] = node
            self.folders = {
                key: operation.target if path == operation.source else path for key, path in self.folders.items()
            }
            self.name_changes.append((_parent(operation.target), operation, node))
        elif isinstance(operation, Link):
            node = self.names.get(operation.source)
            if node is not None:
                self.names[operation.target] = node
                self.name_changes.append((_parent(operation.target), operation, node))
        elif isinstance(operation, Unlink):
            node = self.names.pop(operation.path, None)
            if node is not None:
                self.name_changes.append((_parent(operation.path), operation, node))
        elif isinstance(operation, SyncBegin):
            held = self.nodes.get(operation.node)
            self._syncs[operation.token] = (
                operation.node,
                len(held.pending) if held is not None else len(self.name_changes),
            )
        else:
            self._synced(operation)

    def _renumber(self, old: int, new: int) -> None:
        for names in (self.names, self.safe_names):
            for name, node in names.items():
                if node == old:
                    names[name] = new

    def _synced(self, operation: SyncEnd) -> None:
        node, count = self._syncs.pop(operation.token, (0, 0))
        held = self.nodes.get(node)
        if held is not None:
            held.flush(count)
            for other, (its_node, its_count) in list(self._syncs.items()):
                if its_node == node:
                    self._syncs[other] = (node, max(0, its_count - count))
            return
        folder = self.folders.get(node)
        if folder is None:
            return
        left, gone = [], []
        for index, change in enumerate(self.name_changes):
            if change[0] == folder and index < count:
                _rename_in(self.safe_names, change[1], change[2])
                gone.append(index)
            else:
                left.append(change)
        self.name_changes = left
        for other, (its_node, its_count) in list(self._syncs.items()):
            if its_node not in self.nodes:  # a sync of a folder that is under way counts among what is left
                self._syncs[other] = (its_node, its_count - sum(index < its_count for index in gone))


def _rename_in(names: dict[str, int], change: Operation, node: int) -> None:
    if isinstance(change, Create):
        names[change.path] = -1 if change.folder else node
    elif isinstance(change, Rename):
        names.pop(change.source, None)
        inside = change.source + "/"
        for name in [name for name in names if name.startswith(inside)]:
            names[change.target + "/" + name[len(inside) :]] = names.pop(name)
        names[change.target] = node
    elif isinstance(change, Link):
        names[change.target] = node
    elif isinstance(change, Unlink):
        names.pop(change.path, None)


@attrs.frozen
class PowerCut:
    """What the disk holds after one power cut. `marks` is what users had been told before it, in order."""

    kind: str
    position: int
    total: int
    seed: int
    files: dict[str, bytes | None]
    marks: tuple[Any, ...]

    def restore(self, folder: Path) -> None:
        """Write that state into `folder`, which must be empty or missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in sorted(self.files.items()):
            target = folder / path
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)

    def describe(self) -> str:
        """For an assertion's message: enough to see it again."""
        return (
            f"power cut ({self.kind}) after operation {self.position} of {self.total}, DEIA_FAULT_SEED={self.seed}, "
            f"{len(self.marks)} marks"
        )


def _survivor(node: _Node, kind: str, rng: random.Random) -> bytes:
    content = bytearray(node.safe)
    pending = node.pending
    if kind == "cut":  # in order; the last one perhaps in part
        keep = rng.randint(0, len(pending))
        for change in pending[:keep]:
            _apply(content, change)
        if keep < len(pending) and isinstance(last := pending[keep], Write) and last.data:
            part = rng.randint(0, len(last.data) - 1)
            _apply(content, Write(last.node, last.offset, last.data[:part]))
        return bytes(content)
    final = bytearray(content)
    touched: set[int] = set()
    for change in pending:
        before = len(final)
        _apply(final, change)
        if isinstance(change, Write):
            touched.update(range(change.offset // SECTOR, (change.offset + len(change.data) - 1) // SECTOR + 1))
            if before < change.offset:
                touched.update(range(before // SECTOR, change.offset // SECTOR + 1))
    if any(isinstance(change, Truncate) for change in pending) and rng.random() < 0.5:
        return _survivor(node, "cut", rng)
    size = len(final) if kind == "reordered" or not pending else rng.randint(min(len(content), len(final)), len(final))
    result = bytearray(content[:size])
    result.extend(bytes(size - len(result)))
    chance = rng.choice((0.1, 0.5, 0.9))
    for sector in touched:
        if rng.random() < chance:
            start = sector * SECTOR
            piece = final[start : min(start + SECTOR, size)]
            result[start : start + len(piece)] = piece
    return bytes(result)


def _rebuild(state: _State, kind: str, rng: random.Random, strict: bool) -> dict[str, bytes | None]:
    names = dict(state.safe_names)
    by_folder: dict[str, int] = {}
    for folder, _, _ in state.name_changes:
        by_folder[folder] = by_folder.get(folder, 0) + 1
    keep = {folder: rng.randint(0, count) for folder, count in by_folder.items()}
    taken: dict[str, int] = {}
    for folder, change, node in state.name_changes:
        taken[folder] = taken.get(folder, 0) + 1
        kept = rng.random() < 0.5 if strict else taken[folder] <= keep[folder]
        if kept:
            _rename_in(names, change, node)
    content: dict[int, bytes] = {}
    files: dict[str, bytes | None] = {}
    for name, node in names.items():
        parent = _parent(name)
        if parent and parent not in names:
            continue  # its folder is not there
        if node == -1:
            files[name] = None
            continue
        if node not in content:
            content[node] = _survivor(state.nodes[node], kind, rng)
        files[name] = content[node]
    return files


def power_cuts(
    trace: Trace, *, count: int, seed: int, kinds: tuple[str, ...] = KINDS, strict: bool = False
) -> Iterator[PowerCut]:
    """`count` states that a disk may be in, each after a cut at a random point of `trace`, in the trace's order.

    `kinds` are tried in turn: `cut` loses the newest changes, `torn` and `reordered` keep any sectors of what was not
    synced. The same seed gives the same cuts. `strict` lets a folder keep any part of its unsynced changes.
    """
    rng = random.Random(seed)
    operations = list(trace.operations)
    positions = sorted(rng.randint(0, len(operations)) for _ in range(count))
    state = _State(trace.before)
    done = 0
    for number, position in enumerate(positions):
        while done < position:
            state.step(operations[done])
            done += 1
        kind = kinds[number % len(kinds)]
        files = _rebuild(state, kind, random.Random(rng.getrandbits(64)), strict)
        yield PowerCut(kind, position, len(operations), seed, files, tuple(state.marks))
