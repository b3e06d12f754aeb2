"""The live file: opened, locked and looked at again where another process may have changed it.

One writer at a time in a process uses it (the journal's writer role); between processes a flock on the file
orders the batches, and the folder's lock changes of which files there are. Whatever is found that should not be
(a torn tail, damage, a file gone) becomes a note, which the journal writes as a record of its own.
"""

# descriptors, flags and renames as the system has them
# ruff: noqa: PTH104, PTH116
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from deia_hardening.journal import fence
from deia_hardening.journal.disk import (
    FolderLock,
    read_range,
    save_aside,
    sync_above,
    sync_file,
    sync_folder,
    write_all,
    write_new,
)
from deia_hardening.journal.errors import JournalError
from deia_hardening.journal.lines import Header, leaf_hex, make_header, parse_prefix
from deia_hardening.journal.position import Known, Position, older
from deia_hardening.journal.reader import JournalReader
from deia_hardening.journal.repair import Found, began_ns, birth, end_of_sealed, inspect
from deia_hardening.journal.segments import list_sealed, sealed_name

_TRIES = 1000


class _FolderNeeded(Exception):  # noqa: N818
    """The files themselves must change; that needs the folder's lock, taken first."""


class SyncFailed(Exception):  # noqa: N818
    """fdatasync of the live file failed: what it holds unsynced may be gone. `error` says how."""

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(str(error))


def _sync(descriptor: int) -> None:
    try:
        sync_file(descriptor)
    except OSError as error:
        raise SyncFailed(error) from error


class LiveFile:
    """A journal's live file. Not thread-safe; every method may block and raise OSError."""

    def __init__(self, path: Path, scan_bytes: int, now_ns: Callable[[], int], stamp: Callable[[], str]) -> None:
        self.path = path
        self.folder = FolderLock(path.parent)
        self.descriptor = -1
        self.position: Position | None = None
        self.known: Known | None = None
        self.notes: list[dict[str, object]] = []
        self.foreign: Callable[[int, int, int, bytes, Header], None] | None = None
        self.rewound: int | None = None  # from this seq on, what this process had written was lost by a fence
        self._identity = (-1, -1)
        self._gone_is_known = False
        self._scan_bytes = scan_bytes
        self._now_ns = now_ns
        self._stamp = stamp

    # -- opening and locking

    def acquire(self) -> Position:
        """Lock the live file for this process and return where it ends. `release()` it soon."""
        try:
            return self._acquire(structural=False)
        except _FolderNeeded:
            with self.folder.held():
                return self._acquire(structural=True)

    def _acquire(self, *, structural: bool) -> Position:
        for _ in range(_TRIES):
            if self.descriptor < 0 and not self._open():
                if not structural:
                    raise _FolderNeeded
                self._create()
                continue
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            try:
                status = os.stat(self.path, follow_symlinks=False)
            except FileNotFoundError:
                status = None
            if status is None or (status.st_dev, status.st_ino) != self._identity:
                if self.position is not None and not structural:
                    self.release()
                    raise _FolderNeeded
                self._left_behind()
                continue
            position = self.position
            if position is None:
                if self._load(status.st_size, structural=structural):
                    assert self.position is not None
                    return self.position
                continue
            if status.st_size == position.size:
                return position
            if status.st_size < position.size:
                if not structural:
                    self.release()
                    raise _FolderNeeded
                self._set_aside("the live file was cut short by somebody else")
                continue
            if self._catch_up(position, status.st_size):
                return position
        raise JournalError(f"{self.path} keeps being replaced; nothing was written to it")

    def release(self) -> None:
        """Give back the lock; the descriptor stays. Never raises: what was written stays written."""
        if self.descriptor >= 0:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            except OSError:
                self.close()  # which unlocks too

    def close(self) -> None:
        """Give back the descriptor (and with it the lock). What is known of the file is kept."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def forget(self) -> None:
        """In a fork's child: as never opened. The parent keeps its lock."""
        self.close()
        self.folder.forget()
        self.position = self.known = None
        self.notes.clear()

    def _open(self) -> bool:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self.descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            return False
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.ENOTSUP, "what stands in the live file's place is no regular file", str(self.path))
        identity = (status.st_dev, status.st_ino)
        if self.position is not None and not self._is_the_same(self.position, identity):
            self._remember(self.position)
            self.position = None
        self._identity = identity
        return True

    def _is_the_same(self, position: Position, identity: tuple[int, int]) -> bool:
        """Whether the file just opened is the one that `position` is of.

        While no descriptor was open, that file may have been sealed, compressed and deleted, and its inode number
        given to a later segment; the first line, which no two segments share, tells them apart.
        """
        if (position.device, position.inode) != identity:
            return False
        try:
            return os.pread(self.descriptor, len(position.head), 0) == position.head
        except OSError:
            return False

    def _remember(self, position: Position) -> None:
        header = position.header
        self.known = Known(header.origin, header.segment, position.next_seq, position.prev)

    # -- what is in it

    def _load(self, size: int, *, structural: bool) -> bool:
        """Look at a file that this process does not know. False when another one must be opened instead."""
        found = inspect(self.path, self.descriptor, size, self._scan_bytes)
        known = self.known
        fenced = fence.find(self.path)
        if found is None or fenced is not None or self._is_old(found):
            if not structural:
                self.release()
                raise _FolderNeeded
            if fenced is not None:
                fence.finish(self.path, fenced, self._stamp())
            if found is None:
                self._set_aside("the live file has no header")
                return False
            if self._is_old(found):
                self._set_aside("another file, or a copy, stood in the live file's place")
                return False
        tail = found.tail
        for damage in found.damage:
            self._damaged(damage.what, damage.seq, offset=damage.offset)
        if tail.torn is not None:
            self._cut(tail.end, size, tail.torn)
        device, inode = self._identity
        head = read_range(self.descriptor, 0, found.header_size)
        began = began_ns(self.descriptor, found.header_size, tail.end, self._now_ns)
        self.position = Position(device, inode, found.header, head, tail.end, tail.next_seq, tail.prev, began)
        if self.foreign is not None and known is not None and known.next_seq < tail.next_seq:
            self.foreign(known.next_seq, tail.next_seq, -1, b"", found.header)
        if known is not None and tail.next_seq < known.next_seq:
            self.rewound = tail.next_seq
        self._remember(self.position)
        return True

    def _is_old(self, found: Found) -> bool:
        """Whether a file is no continuation of what is known here, or of what is sealed, which readers go by."""
        if self.known is not None and older(found, self.known):
            return True
        sealed = list_sealed(self.path)
        return bool(sealed) and sealed[-1].number >= found.header.segment

    def _damaged(self, what: str, at: int, **more: object) -> None:
        self.notes.append({"kind": "journal.damage", "what": what, "at": at, **more})

    def _cut(self, end: int, size: int, why: str) -> None:
        """Save what a crash tore, then cut it. Saved first: a crash between leaves both."""
        torn = read_range(self.descriptor, end, size)
        saved = save_aside(self.path, "torn", self._stamp(), torn)
        os.ftruncate(self.descriptor, end)
        self.notes.append({"kind": "journal.repaired", "what": why, "bytes": len(torn), "saved": saved.name})

    def _catch_up(self, position: Position, size: int) -> bool:
        """Read what another process wrote since. False when its end is torn or strange and needs a full look."""
        data = read_range(self.descriptor, position.size, size)
        end = data.rfind(b"\n") + 1
        start = data.rfind(b"\n", 0, max(0, end - 1)) + 1
        last = data[start : end - 1] if end else b""
        prefix = parse_prefix(last)
        first = parse_prefix(data[: data.find(b"\n")] if start else last)
        expected = (position.next_seq, position.prev)
        sane = prefix is not None and first is not None and (first.seq, first.prev) == expected
        if not sane or end != len(data):
            if end and not sane:
                what = "bytes that are not a journal's follow the last record"
                self._damaged(what, position.next_seq, offset=position.size)
            self._remember(position)
            self.position = None
            return False
        assert prefix is not None
        if self.foreign is not None:
            self.foreign(position.next_seq, prefix.seq + 1, position.size, data, position.header)
        position.size = size
        position.next_seq = prefix.seq + 1
        position.prev = leaf_hex(last)
        self._remember(position)
        return True

    # -- writing

    def append(self, data: bytes, next_seq: int, prev: bytes) -> None:
        """Write whole lines at the end; the lock is held. On an error the file is as before."""
        position = self.position
        assert position is not None
        try:
            write_all(self.descriptor, data)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, position.size)
            raise
        position.size += len(data)
        position.next_seq = next_seq
        position.prev = prev

    def sync(self) -> int:
        """fdatasync; the last seq that is now on disk. Outside the lock. An error must lead to `fence`."""
        position = self.position
        assert position is not None
        size, through = position.size, position.next_seq - 1
        if self.descriptor < 0 and not (self._open() and self.position is position):
            raise SyncFailed(OSError(errno.EIO, "the file went away before it was synced"))
        _sync(self.descriptor)
        position.synced_size, position.synced_seq = size, through
        return through

    # -- changes of which files there are (under the folder's lock)

    def rotate(self) -> tuple[Position, Path] | None:
        """Seal the live file and begin the next. None when there is nothing in it, or another process did it."""
        with self.folder.held():
            before = self.position.header.segment if self.position is not None else -1
            position = self._acquire(structural=True)
            header = position.header
            if position.next_seq == header.first or (before >= 0 and header.segment != before):
                self.release()
                return None
            _sync(self.descriptor)
            position.synced_size, position.synced_seq = position.size, position.next_seq - 1
            sealed = self.path.with_name(sealed_name(self.path.name, header.segment, header.first))
            following = make_header(header.origin, header.segment + 1, position.next_seq, position.prev)
            new = fence.beside(self.path)
            write_new(new, following.encode() + b"\n")
            sync_folder(self.path.parent)  # its name tells a rotation cut short from a live file taken away
            os.rename(self.path, sealed)
            sync_folder(self.path.parent)  # else a power cut could keep the second rename without the first
            os.rename(new, self.path)
            sync_folder(self.path.parent)
            self._remember(position)
            self.close()
            self.position = None
            return position, sealed

    def fence(self) -> dict[str, object]:
        """After a failed sync: no process writes to this file again. Returns what to record about it."""
        with self.folder.held():
            position = self.position
            try:
                status: os.stat_result | None = os.stat(self.path, follow_symlinks=False)
            except FileNotFoundError:
                status = None
            mine = status is not None and (status.st_dev, status.st_ino) == self._identity
            if mine and self.descriptor >= 0 and position is not None:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)
                fence.begin(self.path, max(0, position.synced_size))
            self.close()
            self.position = self.known = None
            note: dict[str, object] = {"kind": "journal.fenced"}
            if position is not None:
                note["segment"] = position.header.segment
                note["synced_through"] = position.synced_seq
            return note

    def _create(self) -> None:
        """Begin the live file: the first, the next after a crash, or the rest of a fenced one."""
        if os.path.lexists(self.path):
            return
        fenced = fence.find(self.path)
        if fenced is not None:
            fence.carry_over(self.path, fenced)
            fence.finish(self.path, fenced, self._stamp())
            return
        new = fence.beside(self.path)
        sealed = list_sealed(self.path)
        if self.position is not None:
            self._remember(self.position)
            self.position = None
        known = self.known
        rotating = new.exists()
        if sealed:
            origin, number, next_seq, prev = end_of_sealed(self.path, sealed[-1])
            if known is None or next_seq >= known.next_seq or known.segment <= number:
                if known is not None and known.segment == number and known.next_seq > next_seq:
                    next_seq, prev = known.next_seq, known.prev
                if known is not None and known.origin != origin:
                    origin = known.origin
                known = Known(origin, number, next_seq, prev)
        if known is None:
            sync_above(self.path.parent)
            write_new(new, birth(self._now_ns()))
        else:
            write_new(new, make_header(known.origin, known.segment + 1, known.next_seq, known.prev).encode() + b"\n")
            missing = not sealed or (self.known is not None and self.known.segment > sealed[-1].number)
            if (missing or not rotating) and not self._gone_is_known:
                self._damaged("the live file was gone", known.next_seq)
            self.known = known
        os.rename(new, self.path)
        sync_folder(self.path.parent)
        self._gone_is_known = False

    def _left_behind(self) -> None:
        """Our descriptor's file is not at the path any more: sealed by another process, or taken away."""
        position = self.position
        if position is not None and fence.find(self.path) is None:
            header = position.header
            plain = self.path.with_name(sealed_name(self.path.name, header.segment, header.first))
            packed = self.path.with_name(sealed_name(self.path.name, header.segment, header.first, compressed=True))
            gone = not plain.exists() and not packed.exists()
            if gone and not JournalReader(self.path).was_pruned(position.next_seq - 1):
                data = read_range(self.descriptor, 0, os.fstat(self.descriptor).st_size)
                new = fence.beside(self.path).with_suffix(".rescue")
                write_new(new, data)
                os.rename(new, plain)
                sync_folder(self.path.parent)
                what = "the live file was deleted or moved away; its records were kept"
                self._damaged(what, position.next_seq, saved=plain.name)
                self._gone_is_known = True
        if position is not None:
            self._remember(position)
        self.position = None
        self.close()

    def _set_aside(self, why: str) -> None:
        """Move the file at the path out of the way; the next one goes on from what this process knows."""
        sealed = None
        if self.position is not None:
            self._remember(self.position)
            header = self.position.header
            if os.fstat(self.descriptor).st_size > len(header.encode()):  # what is left of it stays readable
                sealed = self.path.with_name(sealed_name(self.path.name, header.segment, header.first))
        self.position = None
        target = fence.free_name(self.path, "aside", self._stamp())
        if sealed is not None and not sealed.exists():
            target = sealed
        os.rename(self.path, target)
        sync_folder(self.path.parent)
        self.close()
        at = self.known.next_seq if self.known is not None else 0
        self._damaged(why, at, saved=target.name)
        self._gone_is_known = True
