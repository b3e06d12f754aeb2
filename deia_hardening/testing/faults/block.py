"""Power cuts below a real file system: block writes and flushes recorded, disks rebuilt, mounted and looked at.

A loop device over a FUSE file (see `fuse`) carries ext4. What it wrote after the last flush may be lost or kept in
any part, as in a drive with a volatile cache. Root, Linux; half a second a cut.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deia_hardening.testing.faults.basics import Unavailable, available
from deia_hardening.testing.faults.disk import KINDS
from deia_hardening.testing.faults.fuse import DiskFile

BLOCK = 4096
"""What a drive writes whole: with smaller pieces ext4's superblock could tear, and it would not mount."""
_OPTIONS = "noauto_da_alloc,noatime"  # ext4's own mending of missing fsyncs is off: others do not have it


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def _mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    """`image` mounted at `folder` over a loop device; both undone at the end."""
    loop = _run("losetup", "--find", "--show", str(image))
    try:
        _run("mount", "-o", options, loop, str(folder))
        try:
            yield folder
        finally:
            try:
                _run("umount", str(folder))
            except subprocess.CalledProcessError as error:
                _run("umount", "--lazy", str(folder))
                raise RuntimeError(f"{folder} is still in use: close its files within the block") from error
    finally:
        _run("losetup", "--detach", loop)


class BlockCut:
    """A disk after a power cut. `marks` is what users had been told before it."""

    def __init__(
        self, kind: str, position: int, total: int, seed: int, image: bytearray, marks: tuple[Any, ...]
    ) -> None:
        self.kind = kind
        self.position = position
        self.total = total
        self.seed = seed
        self.marks = marks
        self._image = image

    def describe(self) -> str:
        """For an assertion's message: enough to see it again."""
        return (
            f"block-level power cut ({self.kind}) after {self.position} of {self.total} writes and flushes, "
            f"DEIA_FAULT_SEED={self.seed}, {len(self.marks)} marks"
        )

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The disk mounted (the file system replays its journal), writable, until the block ends."""
        work = Path(tempfile.mkdtemp(prefix="deia-block-cut-"))
        try:
            image, folder = work / "disk", work / "mounted"
            folder.mkdir()
            image.write_bytes(self._image)
            with _mounted(image, folder, _OPTIONS):
                yield folder
        finally:
            shutil.rmtree(work)


class BlockDevice:
    """A mounted file system whose disk is recorded. Made by `block_device`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._log: list[tuple[str, int, bytes]] = []
        self._marks: list[tuple[int, Any]] = []
        self._start: bytearray | None = None

    def note(self, kind: str, offset: int, data: bytes) -> None:
        with self._lock:
            if self._start is not None:
                self._log.append((kind, offset, data))

    def begin(self, image: bytearray) -> None:
        with self._lock:
            self._start = bytearray(image)

    def mark(self, what: Any) -> None:
        """Note that a user was told `what` now: a cut from here on must keep it."""
        with self._lock:
            self._marks.append((len(self._log), what))

    def power_cuts(self, *, count: int, seed: int, kinds: tuple[str, ...] = KINDS) -> Iterator[BlockCut]:
        """`count` disks, each after a cut at a random point of what was recorded, in its order."""
        rng = random.Random(seed)
        with self._lock:
            log, marks = list(self._log), list(self._marks)
        assert self._start is not None
        safe, done = bytearray(self._start), 0
        pending: list[tuple[int, bytes]] = []
        for number, position in enumerate(sorted(rng.randint(0, len(log)) for _ in range(count))):
            for kind, offset, data in log[done:position]:
                if kind == "write":
                    pending.append((offset, data))
                    continue
                for start, piece in pending:
                    safe[start : start + len(piece)] = piece
                pending.clear()
            done = position
            kind = kinds[number % len(kinds)]
            image = bytearray(safe)
            _survive(image, pending, kind, random.Random(rng.getrandbits(64)))
            told = tuple(what for at, what in marks if at <= position)
            yield BlockCut(kind, position, len(log), seed, image, told)


def _survive(image: bytearray, pending: list[tuple[int, bytes]], kind: str, rng: random.Random) -> None:
    """Some of the writes that no flush covered: the first ones, any whole ones, or any blocks of them."""
    keep = rng.randint(0, len(pending))
    for number, (start, data) in enumerate(pending):
        if kind == "cut":
            if number < keep:
                image[start : start + len(data)] = data
        elif kind == "reordered":
            if rng.random() < 0.5:
                image[start : start + len(data)] = data
        else:
            for at in range(0, len(data), BLOCK):
                if rng.random() < 0.5:
                    piece = data[at : at + BLOCK]
                    image[start + at : start + at + len(piece)] = piece


@contextlib.contextmanager
def block_device(*, mib: int = 32, filesystem: str = "ext4") -> Iterator[BlockDevice]:
    """A file system of `mib` MiB whose every block write and flush is recorded, until the block ends.

    Take `power_cuts` after the block. Raises Unavailable without root, FUSE or loop devices.
    """
    reason = available("fuse")
    if reason is not None:
        raise Unavailable(reason)
    work = Path(tempfile.mkdtemp(prefix="deia-block-device-"))
    below, folder = work / "below", work / "mounted"
    below.mkdir()
    folder.mkdir()
    device = BlockDevice(folder)
    disk = DiskFile(below, mib << 20, device.note)
    try:
        _run(f"mkfs.{filesystem}", "-q", str(disk.path))
        with _mounted(disk.path, folder, _OPTIONS):
            os.sync()
            device.begin(disk.image)
            yield device
    finally:
        disk.close()
        shutil.rmtree(work, ignore_errors=True)
