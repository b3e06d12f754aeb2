"""The workers of a home tell the one that drives a rollout what they see: outcomes, and what is in flight.

Datagrams on a Unix socket in the home's run folder: a worker never waits for another. What does not fit is dropped and
counted; which outcomes are lost does not depend on the version they came from, so the judge stays valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import msgspec

from deia_hardening.upstream.rundir import RunDir
from deia_migration.mirror import Mirrored
from deia_migration.outcome import Outcome

BATCH = 64
"""Outcomes in one datagram: below 8 KiB, which every system's default buffers take."""

SILENT = 2.0
"""Seconds after which a worker that reported nothing is taken to be gone."""


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What one worker says: its outcomes, how many requests it has on the version (by number) that leaves, and what it
    has compared of mirrored answers."""

    rollout: str
    pid: int
    leaving: int = 0
    outcomes: tuple[Outcome, ...] = ()
    version: int = 0
    mirrored: Mirrored | None = None


@attrs.frozen
class Heard:
    """What another worker said last, and when by this loop's clock."""

    version: int
    leaving: int
    at: float


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Report).decode


class Crew:
    """This process's end: it listens while it drives, and reports while it does not. For the background loop."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path: Path | None = None
        self._receiving: socket.socket | None = None
        self._sending: socket.socket | None = None
        self._take: Callable[[Report], None] = lambda report: None
        self._heard: dict[int, Heard] = {}
        self._here: Path | None = None
        self._inode = 0
        self._began = 0.0
        self.dropped = 0

    def prepare(self) -> Path:
        """Find the place of the socket, making the run folder. Blocks."""
        if self._path is None:
            folder = RunDir(self._home)
            folder.prepare()
            self._path = folder.socket_path("migration-crew").with_suffix(".dgram")
        return self._path

    def enter(self) -> None:
        """Be counted among the workers of this home. Blocks."""
        here = self.prepare().with_suffix(f".{os.getpid()}.here")
        here.touch(0o600)
        self._here = here

    def leave(self) -> None:
        """Be counted no more. Blocks."""
        if self._here is not None:
            self._here.unlink(missing_ok=True)
            self._here = None

    def others(self) -> list[int]:
        """The other workers of this home that live. Blocks for a folder's listing."""
        found = []
        path = self.prepare()
        for one in path.parent.glob(f"{path.stem}.*.here"):
            pid = int(one.name.split(".")[-2])
            if pid == os.getpid():
                continue
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                one.unlink(missing_ok=True)
            except PermissionError:
                pass
            else:
                found.append(pid)
        return found

    def listen(self, take: Callable[[Report], None]) -> None:
        """Take the workers' reports from now on; the one that drove before is gone or stops. Blocks for file work."""
        path = self.prepare()
        beside = path.with_suffix(f".{os.getpid()}")
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            found.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            found.bind(str(beside))
            beside.chmod(0o600)
            self._inode = beside.stat().st_ino
            beside.rename(path)
        except OSError:
            found.close()
            raise
        self._take = take
        self._receiving = found

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read what `listen` has opened."""
        self._began = loop.time()
        if self._receiving is not None:
            loop.add_reader(self._receiving, self._read)

    def _read(self) -> None:
        receiving = self._receiving
        if receiving is None:
            return
        for _ in range(64):  # bounded, so that a flood of reports leaves the loop its turn
            try:
                data = receiving.recv(65_536)
            except (BlockingIOError, InterruptedError):
                return
            with contextlib.suppress(msgspec.DecodeError):
                report = _decode(data)
                self._heard[report.pid] = Heard(report.version, report.leaving, asyncio.get_running_loop().time())
                self._take(report)

    def idle(self, others: Sequence[int], version: int, since: float, drain: float) -> bool:
        """Whether no other worker has anything in flight on a version that leaves since `since` (this loop's clock).

        Each must have said so since then. One that is silent for `SILENT` seconds is taken to be gone, but not before
        `drain` where its last word was that it still has something.
        """
        now = asyncio.get_running_loop().time()
        for pid in others:
            heard = self._heard.get(pid)
            if heard is None or heard.version != version:
                busy = now - max(since, self._began) < SILENT
            elif heard.leaving:
                busy = now - heard.at < SILENT or now - since < drain + SILENT
            else:
                busy = heard.at <= since and now - max(since, self._began) < SILENT
            if busy:
                return False
        return True

    def report(
        self, rollout: str, version: int, leaving: int, outcomes: Sequence[Outcome], mirrored: Mirrored | None = None
    ) -> None:
        """Send to whoever drives; nobody listening loses it. Never blocks."""
        sending = self._sending
        if sending is None:
            sending = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            sending.setblocking(False)
            self._sending = sending
        if self._path is None:
            self.dropped += len(outcomes)
            return
        path = str(self._path)
        for start in range(0, max(1, len(outcomes)), BATCH):
            batch = outcomes[start : start + BATCH]
            report = Report(rollout, os.getpid(), leaving, tuple(batch), version, mirrored)
            mirrored = None  # once: it is all so far
            try:
                sending.sendto(_encode(report), path)
            except OSError:
                self.dropped += len(batch)

    def remove(self) -> None:
        """Remove the socket's file, unless another worker leads by now. Blocks."""
        if self._path is not None and self._inode:
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._inode = 0

    def close(self) -> None:
        """Stop listening and reporting."""
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                asyncio.get_running_loop().remove_reader(receiving)
            receiving.close()
        if self._sending is not None:
            self._sending.close()
            self._sending = None
        self._heard.clear()
