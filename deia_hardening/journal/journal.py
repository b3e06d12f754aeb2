"""The append-only log behind every `*.jsonl`: what callers use, and the thread that writes for them.

`append` never waits for the disk; a `Receipt` tells when a record is durable. The thread and the descriptor
exist only while there is work. What goes wrong is in `health()`, and every record that could not be kept is
counted in the log itself.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
from _thread import get_ident
from collections.abc import Callable
from pathlib import Path
from threading import main_thread as _main_thread
from time import monotonic

from deia_hardening.clock import SYSTEM_CLOCK, Clock
from deia_hardening.journal import housekeeping, processes
from deia_hardening.journal.errors import JournalClosed, JournalError
from deia_hardening.journal.health import JournalHealth, JournalStats
from deia_hardening.journal.inlet import BUSY, GATHERING, IDLE, LED, NO_THREAD, Inlet, Receipt
from deia_hardening.journal.latch import Waiting, wake_all
from deia_hardening.journal.lines import format_time
from deia_hardening.journal.listeners import Batch, Listeners
from deia_hardening.journal.live import LiveFile
from deia_hardening.journal.segments import Segment
from deia_hardening.journal.settings import JournalSettings
from deia_hardening.journal.writer import Writer
from deia_hardening.turns import turns

_EXIT_TIMEOUT = 10.0
_EARLY = 0.8
"""The part of `write_interval` after which a busy serving loop stands aside; later the thread wakes by itself."""
_LED_PAUSE = 0.002
"""How long a record may wait that a thread appended which waited for, and wrote, its earlier ones itself."""


class Journal(Inlet):
    """One append-only log. Any thread may call any method; `append` and `append_body` never block.

    Made by `open_journal`. Several processes may have the same file open.
    """

    _to_wake: list[Waiting]
    """Who waited for what is synced by now; the thread's own."""

    def __init__(self, path: Path, settings: JournalSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = path
        self.settings = settings
        self._clock = clock
        self._listeners = Listeners()
        self._semaphore = threading.Lock()
        super().__init__(settings, clock.wall_ns)
        self._live = LiveFile(path, int(settings.sync_bytes), clock.wall_ns, self._stamp)
        self._writer = Writer(self, self._live, settings, clock, self._listeners)
        self._writer.rotated = self._maintain_later
        self._exiting = False
        self._holds: list[Callable[[Segment], bool]] = []
        self._housekeeping = threading.Lock()
        processes.follow(self)

    def __repr__(self) -> str:
        return f"<Journal {self.path}>"

    def _stamp(self) -> str:
        text = format_time(self._clock.wall_ns())
        return text[:19].translate({ord("-"): None, ord(":"): None})

    # -- finishing

    def drain(self, timeout: float | None = None) -> bool:
        """Write and sync on this thread what was appended so far. True when all of it is durable.

        May block for the disk (use `host.blocking` in async code). False when `timeout` seconds passed while
        another thread was writing, or the disk failed: `health()` says how, and the records stay queued.
        """
        if not self._writer.role.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        try:
            return self._flush()
        finally:
            self._writer.role.release()
            with self._lock:
                kick = self._pending() and self._level >= IDLE
            if kick:
                self._rouse(here=False)

    def _flush(self) -> bool:
        """All that is queued now, in turns; the role is held."""
        for _ in range(self._max_records):
            with self._lock:
                empty = not self._pending() and self._gap is None
            if empty:
                break
            if not self._writer.write() and not (self._writer.state == "fenced" and self._writer.write()):
                return False  # after a fence a new segment is there: once more
        return self._writer.sync()

    def close(self, timeout: float | None = None) -> bool:
        """Drain, then refuse further records with JournalClosed. Gives back thread and descriptor. May block.

        True when all that was appended is durable. After `timeout` seconds in which another thread or process held
        the file it gives up on what is still queued: those receipts get a JournalError.
        """
        with self._lock:
            self._gather()  # what was appended until now is kept
            self._closed = self._urgent = True
        whole = False
        if self._writer.role.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            try:
                whole = self._flush()
                self._live.close()
            finally:
                self._writer.role.release()
        with self._lock:
            waiters, self._waiters = [*self._waiters.values()], {}
            self._gather()
            left, self._queue, self._bytes = self._queue, [], self._held
        for receipt in [*left, *(entry[0] for entry in waiters)]:
            if not receipt.done():
                receipt._error = JournalClosed(f"{self.path} was closed before the record was known to be on disk")
        wake_all(waiters)
        self._rouse()
        with self._housekeeping:
            pass  # it stops soon when it sees that the journal is closed
        return whole

    def seal(self) -> bool:
        """Write what is queued, seal the live segment and begin a new one. False when there was nothing to seal."""
        with self._writer.role:
            return self._flush() and self._writer.seal()

    def wait_blocking(self, receipt: Receipt, timeout: float | None) -> bool:
        """Wait on this thread. Without a limit it writes and syncs itself where nobody else is at it: that saves two
        changes of thread. The main thread does not, where a signal's handler may raise at any point."""
        if timeout is None and get_ident() != _main_thread().ident and self._lead() and receipt.done():
            return True
        return super().wait_blocking(receipt, timeout)

    def _lead(self) -> bool:
        """One turn of the writer's work on this thread. False when the writer is at it, or pauses after a failure."""
        writer = self._writer
        role = writer.role
        if not role.acquire(blocking=False):
            return False
        try:
            if writer.retry_at > self._clock.monotonic():
                return False
            writer.write()
            writer.sync()
            self._leads += 1
            if self.settings.durability == "sync":
                self._leader = get_ident()
        finally:
            role.release()
            with self._lock:
                left = self._pending() or bool(self._waiters or writer.unsynced_bytes) or self._gap is not None
                self._urgent = self._urgent or left
                kick = left and self._level
            if kick:
                self._rouse()
        return True

    # -- looking

    def health(self) -> JournalHealth:
        """What works and what does not, since when. Cheap; any thread."""
        writer, listeners = self._writer, self._listeners
        trouble = self._trouble
        detail = str(trouble) if trouble is not None else ""
        if not detail and listeners.failures:
            detail = f"{listeners.failures} failures of a listener, the last: {listeners.last_failure}"
        return JournalHealth(writer.state == "ok" and not listeners.failures, writer.state, detail, writer.since)

    def stats(self) -> JournalStats:
        """Counts for metrics. Cheap; any thread."""
        counts = self._writer.counts
        with self._lock:
            self._gather()
        return JournalStats(
            counts.records, counts.bytes, counts.batches, counts.syncs, counts.failures, self._dropped,
            counts.rotations, len(self._queue), self._bytes, self.durable_through,
        )  # fmt: skip

    def on_batch(
        self,
        written: Callable[[Batch], None],
        synced: Callable[[int], None] | None = None,
        sealed: Callable[[Segment], None] | None = None,
    ) -> None:
        """Be told, on the writer's thread, of each batch written, of each seq synced up to, of each segment sealed.

        What other processes append comes as batches with `own` False, once this process writes again. Callbacks
        must be quick and must not call this journal's blocking methods.
        """
        self._listeners.add(written, synced, sealed)

    # -- segments

    def guard_retention(self, held: Callable[[Segment], bool]) -> None:
        """Keep retention from deleting segments for which `held` is true (and any after them)."""
        self._holds = [*self._holds, held]

    def maintain(self) -> None:
        """Compress sealed segments and let retention delete. Blocks; done after each rotation by itself."""
        with self._housekeeping:
            self._maintain()

    def _maintain(self) -> None:
        def held(segment: Segment) -> bool:
            return any(hold(segment) for hold in self._holds)

        with contextlib.suppress(InterruptedError, JournalClosed):
            housekeeping.maintain(self, self.settings, self._clock, held, lambda: self._closed or self._exiting)

    def _maintain_later(self) -> None:
        if self._exiting or self._closed or not self._housekeeping.acquire(blocking=False):
            return
        try:
            _thread.start_new_thread(self._maintain_quietly, (self._housekeeping,))
        except RuntimeError:  # at the interpreter's exit: the next start does it
            self._housekeeping.release()

    def _maintain_quietly(self, taken: _thread.LockType) -> None:
        try:
            self._maintain()
        except Exception as error:
            self._listeners.failures += 1
            self._listeners.last_failure = f"compression and retention: {error}"
        finally:
            taken.release()

    # -- the thread

    def _rouse(self, *, here: bool = True) -> None:
        """Have the thread look at the queue, or write on this one where there is none to be had (if it may: `here`)."""
        inline = False
        with self._lock:
            level = self._level
            if level == NO_THREAD:
                if self._closed and not self._queue:
                    return
                if self._exiting:
                    inline = True
                else:
                    self._level = BUSY  # before any call: a signal handler that appends in it finds the thread started
                    try:
                        # not threading.Thread: its start() waits for the new thread to run, up to 5 ms under load
                        _thread.start_new_thread(self._work, (self._generation,))
                        processes.at_the_end_of_a_child()
                    except RuntimeError as error:  # at the interpreter's exit, or there are too many threads just now
                        self._level = NO_THREAD
                        inline = True
                        self._exiting = "shutdown" in str(error)
            elif level != BUSY:
                self._level = BUSY
                self._semaphore.release()
        if inline and here:
            self.drain()

    def _written_soon(self) -> None:
        """A request stands aside for the writer, which has gathered long enough."""
        with self._lock:
            if self._level != GATHERING:
                return
            self._level = BUSY
            self._semaphore.release()  # within: who waits for it in `_wait` holds the lock

    def _pending(self) -> bool:
        return bool(self._queue or self._late)

    def _wait(self, level: int, timeout: float) -> bool:
        """Sleep until woken (True) or `timeout` seconds passed. The level says what may wake."""
        semaphore = self._semaphore
        with self._lock:
            if self._exiting:
                return True
            self._level = level  # first: whoever appends a late record reads it without the lock, afterwards
            if self._urgent or (level >= LED and (self._pending() or self._closed)):
                self._level = BUSY
                self._urgent = False
                self._wake()
                return True
        self._wake()
        if semaphore.acquire(timeout=max(0.0, timeout)):
            return True
        with self._lock:
            if self._level == BUSY:  # woken just now
                semaphore.acquire()
                return True
            if self._level != NO_THREAD:  # else it is the exit
                self._level = BUSY
        return False

    def _wake(self) -> None:
        """Wake who waited for what was synced: just before this thread sleeps, since they want the interpreter too."""
        if self._to_wake:
            done, self._to_wake = self._to_wake, []
            wake_all(done)

    def _work(self, generation: object) -> None:
        """The thread: turns, until it was idle for a while."""
        try:
            with contextlib.suppress(SystemExit):
                while self._generation is generation and self._turn(generation):
                    pass
            turns.rests(self)
        except BaseException as error:
            self._listeners.failures += 1
            self._listeners.last_failure = f"the writer's thread ended: {type(error).__name__}: {error}"
            with self._lock:
                if self._generation is generation:
                    self._level = NO_THREAD
            self._wake()
            raise

    def _turn(self, generation: object) -> bool:
        settings, writer = self.settings, self._writer
        wrote = False
        if settings.durability != "sync" and not self._urgent:
            interval = settings.write_interval
            turns.wants(self, monotonic() + interval * _EARLY, self._written_soon)
            self._wait(GATHERING, interval)
            turns.wants(self)
        if self._leader and not (self._pending() or self._waiters or self._urgent or self._closed):
            seen = self._leads
            if not self._wait(LED, _LED_PAUSE) and self._leads == seen:
                self._leader = 0
            return True
        with writer.role:
            if self._generation is not generation:
                return False  # in a fork's child
            self._urgent = False
            if writer.retry_at <= self._clock.monotonic():
                wrote = writer.write()
                if writer.unsynced_bytes and self._sync_now():
                    turns.rests(self)
                    writer.sync(self._to_wake.extend)
        pause = writer.retry_at - self._clock.monotonic()
        if pause > 0:
            turns.rests(self)
            self._wait(GATHERING, min(pause, settings.retry_limit))
            return True
        if self._pending() or (wrote and settings.durability != "sync"):
            self._wake()
            return True  # more will come: on a busy loop, to be woken by each first record costs more than to look
        turns.rests(self)
        if writer.unsynced_bytes:
            self._wait(IDLE, writer.sync_due - self._clock.monotonic())
            return True
        if not self._closed and (self._wait(IDLE, settings.idle_close) or writer.unsynced_bytes):
            return True
        return self._rest()

    def _sync_now(self) -> bool:
        settings, writer = self.settings, self._writer
        return (
            settings.durability == "sync"
            or bool(self._waiters)
            or writer.unsynced_bytes >= settings.sync_bytes
            or self._clock.monotonic() >= writer.sync_due
        )

    def _rest(self) -> bool:
        """End the thread if there is still nothing to do. False when it ends."""
        self._wake()
        with self._writer.role:
            with self._lock:
                self._level = NO_THREAD
                left = self._pending() or self._gap is not None or bool(self._waiters)
                if left and not self._closed and not self._exiting:
                    self._level = BUSY
                    return True
            self._live.close()
        return False

    # -- the process

    def after_fork(self) -> None:
        """In the child: as never used. What the parent had queued, the parent writes."""
        for receipt in [*self._queue, *self._late, *(entry[0] for entry in self._waiters.values())]:
            receipt._error = JournalError("the record belongs to the process that forked, which writes it")
        self._semaphore = threading.Lock()
        self._housekeeping = threading.Lock()
        closed = self._closed
        self._reset()
        self._closed = closed
        self.durable_through = -1
        self._live.forget()
        self._writer.reset()

    def _reset(self) -> None:
        super()._reset()
        self._leads = 0
        self._to_wake = []
        self._generation = object()  # threads of before a fork see that they are not of this process
        if not self._semaphore.locked():
            self._semaphore.acquire()

    def at_exit(self) -> None:
        """Write what is queued, here; from now on every thread writes what it appends, and none is started."""
        with self._lock:
            self._exiting = True
            self._level = NO_THREAD
            self._generation = object()
        self.drain(_EXIT_TIMEOUT)  # also where nothing is queued: the thread may hold the last batch


def open_journal(path: str | Path, settings: JournalSettings | None = None, *, clock: Clock = SYSTEM_CLOCK) -> Journal:
    """The journal at `path`. Opens no file and starts no thread: the first record does.

    Opening one path twice in a process works as two processes would; better share one.
    """
    return Journal(Path(path).absolute(), settings if settings is not None else JournalSettings(), clock)
