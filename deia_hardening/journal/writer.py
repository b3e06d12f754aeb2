"""Numbers, chains and writes what is queued: few large batches, one write and one fdatasync each.

Whoever holds the role lock is the writer: normally the journal's thread, at `drain` and at exit the caller. A
failure is never silent: it is logged as it begins and as it ends, waiters get an error at once, the records stay queued
and are tried again with growing pauses, and a failed sync fences the file (see `fence`).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from binascii import hexlify
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from deia_hardening.clock import Clock
from deia_hardening.journal.disk import NO_ROOM
from deia_hardening.journal.errors import JournalError
from deia_hardening.journal.inlet import Gap, Inlet, Receipt
from deia_hardening.journal.latch import Waiting, wake_all
from deia_hardening.journal.lines import NO_SECOND, Header, TimeFormat, format_time
from deia_hardening.journal.listeners import Batch, Listeners
from deia_hardening.journal.live import LiveFile, SyncFailed
from deia_hardening.journal.position import Position
from deia_hardening.journal.settings import JournalSettings

logger = logging.getLogger("deia_hardening.journal")

_SECOND = 1_000_000_000
_leaf = hashlib.sha256(b"\0")


@attrs.define
class Counts:
    """What the writer did, since the process began."""

    records: int = 0
    bytes: int = 0
    batches: int = 0
    syncs: int = 0
    failures: int = 0
    gaps: int = 0
    rotations: int = 0


class Writer:
    """Takes from the inlet and writes to the live file. Every method is called by the holder of `role` alone."""

    def __init__(
        self, inlet: Inlet, live: LiveFile, settings: JournalSettings, clock: Clock, listeners: Listeners
    ) -> None:
        self.role = threading.Lock()
        self.counts = Counts()
        self.state = "ok"
        self.since = 0.0
        self.rotated: Callable[[], None] = lambda: None
        self._inlet = inlet
        self._live = live
        self._settings = settings
        self._clock = clock
        self._listeners = listeners
        self._times = TimeFormat()
        self.reset()
        live.foreign = self._foreign

    def reset(self) -> None:
        """As never used."""
        self.role = threading.Lock()
        self.unsynced_bytes = 0
        self.sync_due = 0.0
        self.retry_at = 0.0
        self._pause = 0.0
        self._unsynced: list[list[Receipt]] = []
        self._room_checked = 0.0

    # -- one turn

    def write(self) -> bool:
        """Write one batch of what is queued. False when it failed (see `state`), or there was nothing."""
        inlet = self._inlet
        batch, gap = inlet._take(int(self._settings.batch_bytes))
        if not batch and gap is None:
            return False
        try:
            inlet._encoded(batch)
            self._write(batch, gap)
        except SyncFailed as failed:
            inlet._put_back(batch, gap)
            self._fence(failed.error)
            return False
        except (OSError, JournalError) as error:
            inlet._put_back(batch, gap)
            if isinstance(error, OSError) and error.errno not in NO_ROOM and self._live.position is not None:
                self._fence(error)
            else:
                self._failed(error)
            return False
        except BaseException:
            inlet._put_back(batch, gap)
            raise
        inlet._written()
        return True

    def sync(self, wake: Callable[[list[Waiting]], object] = wake_all) -> bool:
        """fdatasync what was written, and wake who waited for it (or hand them to `wake`)."""
        if not self.unsynced_bytes:
            return True
        try:
            through = self._live.sync()
        except SyncFailed as failed:
            self._fence(failed.error)
            return False
        except OSError as error:  # no descriptor could be had
            self._failed(error)
            return False
        self.counts.syncs += 1
        self._durable(through, wake)
        return True

    def seal(self) -> bool:
        """Seal the live file now. False when there was nothing to seal, or it failed."""
        try:
            return self._rotate()
        except SyncFailed as failed:
            self._fence(failed.error)
        except (OSError, JournalError) as error:
            self._failed(error)
        return False

    def rest(self) -> None:
        """Give back the descriptor."""
        self._live.close()

    # -- writing

    def _write(self, batch: list[Receipt], gap: Gap | None) -> None:
        self._leave_reserve()
        live = self._live
        position = live.acquire()
        if self._seal_due(position):
            live.release()
            self._rotate()
            position = live.acquire()
        if live.rewound is not None:
            self._rewound(live.rewound)
        try:
            first, offset = position.next_seq, position.size
            lines, leaves, prev = self._chain(batch, gap, position)
            live.append(b"\n".join(lines) + b"\n", first + len(lines), prev)
        finally:
            live.release()
        own = len(live.notes)
        live.notes.clear()
        kept: list[Receipt] = []  # what nobody asks about is let go: its memory serves the next request
        for seq, receipt in enumerate(batch, first + own):
            if receipt._kept:
                receipt.seq = seq
                kept.append(receipt)
        counts = self.counts
        counts.records += len(batch)
        counts.batches += 1
        counts.bytes += position.size - offset
        self._works_again()
        if self._settings.durability == "none":
            self._durable(position.next_seq - 1)
        else:
            if not self.unsynced_bytes:
                self.sync_due = self._clock.monotonic() + self._settings.sync_interval
            self.unsynced_bytes += position.size - offset
            self._unsynced.append(kept)
        if self._listeners:
            self._listeners.written(Batch(first, lines, leaves, offset, position.header.segment, True))

    def _chain(
        self, batch: list[Receipt], gap: Gap | None, position: Position
    ) -> tuple[list[bytes], list[bytes], bytes]:
        """The lines of a batch. 1.7 µs per record of 600 bytes, 0.7 of it the hash."""
        seq, prev = position.next_seq, position.prev
        entries = [(self._clock.wall_ns(), _body(note)) for note in self._live.notes]
        entries += [(receipt._time, receipt._body) for receipt in batch]
        if gap is not None:
            self.counts.gaps += gap.count
            entries.append((self._clock.wall_ns(), _body(_gap_event(gap))))
        through = position.synced_seq
        mark = b'"synced":%d,' % through if through >= 0 else b""
        lines: list[bytes] = []
        leaves: list[bytes] = []
        begun = _leaf.copy  # costs less than a new one, and the line is not copied for the zero before it
        times = self._times
        second, text = NO_SECOND, b""
        for ns, body in entries:
            rest = ns - second * _SECOND
            if not 0 <= rest < _SECOND:
                second, rest = divmod(ns, _SECOND)
                text = times(ns)[:20]
            line = b'{"seq":%d,"time":"%b%06dZ","prev":"%b",%b%b}' % (seq, text, rest // 1000, prev, mark, body)
            mark = b""
            leaf = begun()
            leaf.update(line)
            digest = leaf.digest()
            prev = hexlify(digest)
            lines.append(line)
            leaves.append(digest)
            seq += 1
        return lines, leaves, prev

    def _durable(self, through: int, wake: Callable[[list[Waiting]], object] = wake_all) -> None:
        inlet = self._inlet
        self.unsynced_bytes = 0
        self._unsynced.clear()
        done: list[Waiting] = []
        with inlet._lock:
            inlet.durable_through = through
            if inlet._waiters:
                left: dict[Any, Waiting] = {}
                for waiter, entry in inlet._waiters.items():
                    seq = entry[0].seq
                    if seq is not None and seq <= through:
                        done.append(entry)
                    else:
                        left[waiter] = entry
                inlet._waiters = left
        if done:
            wake(done)
        self._listeners.synced(through)

    # -- segments

    def _seal_due(self, position: Position) -> bool:
        settings = self._settings
        if position.size >= settings.segment_bytes:
            return position.next_seq > position.header.first
        if settings.segment_age <= 0 or position.next_seq == position.header.first:
            return False
        return self._clock.wall_ns() - position.began_ns > settings.segment_age * _SECOND

    def _rotate(self) -> bool:
        sealed = self._live.rotate()
        if sealed is None:
            return False
        self.counts.rotations += 1
        position, path = sealed
        self._durable(position.next_seq - 1)
        self._listeners.sealed(path)
        self.rotated()
        return True

    def _leave_reserve(self) -> None:
        """Treat the disk as full while less than the reserve is free; looked at once a second at most."""
        reserve = self._settings.reserve
        now = self._clock.monotonic()
        if reserve <= 0 or 0 <= now - self._room_checked < 1.0:
            return
        folder = self._live.path.parent
        while not folder.exists():
            folder = folder.parent
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < reserve:
            self.rotated()  # retention may free some
            if self._settings.at_reserve == "stop":
                raise OSError(errno.ENOSPC, f"less than the reserve of {reserve} is free; the rest is for the state")
        self._room_checked = now

    # -- failures

    def _failed(self, error: Exception) -> None:
        full = isinstance(error, OSError) and error.errno in NO_ROOM
        self._troubled("full" if full else "failing", error)

    def _fence(self, error: OSError) -> None:
        """The file can't be trusted any more: the next batch goes to a new segment."""
        doubtful, self._unsynced = self._unsynced, []
        self.unsynced_bytes = 0
        try:
            note = self._live.fence()
        except OSError as second:
            note = {"kind": "journal.fenced", "also": str(second)}
        self._live.notes.append({**note, "error": errno.errorcode.get(error.errno or 0, str(error))})
        try:
            self._live.acquire()  # carry over at once what was not synced; if that fails, the next write or start does
            self._live.release()
        except (OSError, JournalError, SyncFailed):
            pass
        verdict = self._text("fenced", error)
        for batch in doubtful:
            for receipt in batch:
                receipt._error = verdict
        self._troubled("fenced", error)

    def _rewound(self, start: int) -> None:
        """Another process fenced the file, and could not carry over what this one had written and not synced."""
        self._live.rewound = None
        verdict = self._text("fenced", OSError(errno.EIO, "a sync of another process failed"))
        for batch in self._unsynced:
            for receipt in batch:
                if receipt.seq is not None and receipt.seq >= start:
                    receipt._error = verdict

    def _text(self, state: str, error: Exception) -> JournalError:
        kept = {
            "fenced": "what was not synced yet is carried over to a new segment as far as it can be read",
            "full": "the records stay queued and are written when room returns",
        }.get(state, "the records stay queued and are tried again")
        return JournalError(f"{self._live.path}: {error}; the record is not known to be on disk; {kept}")

    def _troubled(self, state: str, error: Exception) -> None:
        inlet, settings = self._inlet, self._settings
        news = self.state != state
        if self.state == "ok":
            self.since = self._clock.wall()
        self.state = state
        self.counts.failures += 1
        self._pause = min(settings.retry_limit, self._pause * 2 or settings.retry_interval)
        self.retry_at = self._clock.monotonic() + self._pause
        trouble = self._text(state, error)
        with inlet._lock:
            inlet._trouble = trouble
            waiters, inlet._waiters = [*inlet._waiters.values()], {}
            for receipt, _, _ in waiters:
                if receipt._error is None and not receipt.done():
                    receipt._error = trouble
        wake_all(waiters)
        if news:
            logger.error("%s", trouble)

    def _works_again(self) -> None:
        if self.state != "ok":
            self.state, self._pause, self.retry_at, self.since = "ok", 0.0, 0.0, self._clock.wall()
            with self._inlet._lock:
                self._inlet._trouble = None
            logger.warning("%s: records are written again", self._live.path)

    # -- what other processes wrote

    def _foreign(self, start: int, end: int, offset: int, data: bytes, header: Header) -> None:
        if self._listeners:
            self._listeners.foreign(self._live.path, start, end, offset, data, header.segment)


def _body(event: dict[str, object]) -> bytes:
    return msgspec.json.encode(event)[1:-1]


def _gap_event(gap: Gap) -> dict[str, object]:
    return {
        "kind": "journal.gap", "count": gap.count, "bytes": gap.bytes,
        "from": format_time(gap.first_ns), "to": format_time(gap.last_ns),
    }  # fmt: skip
