"""Sealed segments are compressed and, when retention says so, deleted; never on the way of a record.

A deletion is recorded first, with the last hash that goes, and happens once that record is durable: a log that
begins late without such a record was tampered with.
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH101, PTH104
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
    rest = sealed[len(gone) :]
    following = header_of(rest[0]) if rest else live_header(log.path)
    if following is None or following.segment <= gone[-1].number:
        return []
    receipt = log.append(
        {
            "kind": "journal.pruned",
            "through": following.first - 1,
            "hash": following.prev,
            "segment": gone[-1].number,
            "segments": len(gone),
            "bytes": sum(segment.size for segment in gone),
        }
    )
    if not receipt.wait(60.0):
        return []
    folder = FolderLock(log.path.parent)
    with folder.held():
        for segment in gone:
            for path in {segment.path, segment.path.with_name(segment.path.name.removesuffix(".gz") + ".gz")}:
                path.unlink(missing_ok=True)
        sync_folder(log.path.parent)
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
    """Replace a sealed segment by its compressed form. False when another process is at it, or it is gone."""
    target = segment.path.with_name(segment.path.name + ".gz")
    working = target.with_name(target.name + ".new")
    try:
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if os.fstat(descriptor).st_nlink == 0:
            return False
        with _lower_priority():
            working.unlink(missing_ok=True)
            compress_file(segment.path, working, stop=stop)
        os.utime(working, (segment.modified, segment.modified))
        os.chmod(working, FILE_MODE)
        os.rename(working, target)
        sync_folder(target.parent)
        segment.path.unlink(missing_ok=True)
        sync_folder(target.parent)
    except BaseException:
        working.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


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
