"""Sealed segments are compressed and, when retention says so, deleted; never on the way of a record.

A deletion is recorded first, with the last hash that goes, and happens once that record is durable: a log that
begins late without such a record was tampered with.
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH104, PTH116
from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from deia_hardening.clock import Clock
from deia_hardening.journal.blockgz import BlockReader, compress_file
from deia_hardening.journal.disk import FILE_MODE, FolderLock, sync_folder
from deia_hardening.journal.lines import LONGEST_HEADER, Header, parse_header
from deia_hardening.journal.segments import Segment, list_sealed, to_prune
from deia_hardening.journal.settings import JournalSettings
from deia_hardening.locks import lock, unlock

_KEPT_ASIDE = 64
_NICE = 10


class _Receipt(Protocol):
    def wait(self, timeout: float | None = None) -> bool: ...


class _Log(Protocol):
    path: Path

    def append(self, event: Mapping[str, object], *, now_ns: int | None = None) -> _Receipt: ...


def maintain(
    log: _Log,
    settings: JournalSettings,
    clock: Clock,
    held: Callable[[Segment], bool],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Prune, then compress. Blocks until done, or until `stop()`; raises OSError, leaving whole files."""
    prune(log, settings, clock, held)
    if settings.compression == "gzip":
        for segment in list_sealed(log.path):
            if not segment.compressed:
                compress(segment, stop)
    _prune_aside(log.path)


def prune(log: _Log, settings: JournalSettings, clock: Clock, held: Callable[[Segment], bool]) -> list[Segment]:
    """Delete what retention lets go. Returns what went."""
    sealed = list_sealed(log.path)
    need = 0
    if settings.at_reserve == "prune" and settings.reserve > 0:
        status = os.statvfs(log.path.parent)
        need = max(0, int(settings.reserve) - status.f_bavail * status.f_frsize)
    gone = to_prune(
        sealed,
        now=clock.wall(),
        retain_age=settings.retain_age,
        retain_bytes=int(settings.retain_bytes),
        need=need,
        held=held,
    )
    if not gone:
        return []
    receipt = None
    for segment, following in zip(
        gone, [*sealed[1:], None], strict=False
    ):  # one record each: any may be the last to go
        header = header_of(following) if following is not None else live_header(log.path)
        if header is None or header.segment <= segment.number:
            return []
        receipt = log.append(
            {
                "kind": "journal.pruned",
                "through": header.first - 1,
                "hash": header.prev,
                "segment": segment.number,
                "segments": 1,
                "bytes": segment.size,
            }
        )
    if receipt is None or not receipt.wait(60.0):
        return []
    with FolderLock(log.path.parent).held():
        for segment in gone:
            raw = segment.path.with_name(segment.path.name.removesuffix(".gz"))
            for suffix in ("", ".gz", ".gz.new"):
                raw.with_name(raw.name + suffix).unlink(missing_ok=True)
            sync_folder(log.path.parent)  # else a power cut could leave a hole
    return gone


def header_of(segment: Segment) -> Header | None:
    """The header of a segment, None where it can't be read."""
    try:
        if segment.compressed:
            with BlockReader(segment.path) as reader:
                start = reader.read(0, LONGEST_HEADER)
        else:
            with open(segment.path, "rb") as file:
                start = file.read(LONGEST_HEADER)
    except (OSError, ValueError):
        return None
    return parse_header(start.partition(b"\n")[0])


def live_header(path: Path) -> Header | None:
    """The header of the live file at `path`, None where it can't be read."""
    try:
        with open(path, "rb") as file:
            return parse_header(file.read(LONGEST_HEADER).partition(b"\n")[0])
    except OSError:
        return None


def compress(segment: Segment, stop: Callable[[], bool] = lambda: False) -> bool:
    """Replace a sealed segment by its compressed form. False when another process is at it, or it is gone.

    The segment's own file is not locked: a process that had it open as the live file may be waiting for that lock.
    """
    target = segment.path.with_name(segment.path.name + ".gz")
    working = target.with_name(target.name + ".new")
    claim = _claim(working)
    if claim < 0:
        return False
    try:
        try:
            before = os.stat(segment.path)
            with _lower_priority():
                compress_file(segment.path, claim, stop=stop)
            os.utime(claim, (segment.modified, segment.modified))
            with FolderLock(target.parent).held():
                if not os.path.samestat(before, os.stat(segment.path)):
                    raise FileNotFoundError(segment.path)
                os.rename(working, target)
                sync_folder(target.parent)
                segment.path.unlink(missing_ok=True)
                sync_folder(target.parent)
        except FileNotFoundError:  # compressed by another process, or retention was quicker
            working.unlink(missing_ok=True)
            return False
        except BaseException:
            working.unlink(missing_ok=True)
            raise
    finally:
        unlock(claim)
    return True


def _claim(working: Path) -> int:
    """A descriptor of the empty file `working`, locked for as long as it is open; -1 when another process has it."""
    descriptor = os.open(working, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    with contextlib.suppress(OSError):
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(working)):
            os.ftruncate(descriptor, 0)
            return descriptor
    unlock(descriptor)
    return -1


@contextlib.contextmanager
def _lower_priority():  # type: ignore[no-untyped-def]
    """Lower this thread's priority (Linux has one per thread) while compressing."""
    if sys.platform != "linux":
        yield
        return
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(before, _NICE))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # only root may raise it again; such a thread ends soon
            os.setpriority(os.PRIO_PROCESS, thread, before)


def _prune_aside(path: Path) -> None:
    """Keep the newest of the torn tails that were saved: a crash loop must not fill the disk."""
    saved = sorted(path.parent.glob(path.name + ".torn-*"), key=lambda entry: entry.name)
    for entry in saved[:-_KEPT_ASIDE]:
        entry.unlink(missing_ok=True)
