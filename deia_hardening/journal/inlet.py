"""The side of a journal that callers see: records go in, receipts come out, and nothing here touches a file.

`append` encodes on the caller's thread and queues under one short lock; it never waits for the disk unless
`on_full` is `block`. The queue is bounded in records and bytes. A record may be `Late`: then the caller takes no lock
and encodes nothing.
"""

from __future__ import annotations

import threading
from _thread import get_ident
from asyncio import AbstractEventLoop
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs
import msgspec

from deia_hardening.journal.encoding import clean_body, encode_event
from deia_hardening.journal.errors import JournalClosed, JournalError, JournalFull
from deia_hardening.journal.latch import ThreadWaiter, TrioWaiter, Waiting
from deia_hardening.journal.lines import HARD_LIMIT
from deia_hardening.journal.settings import JournalSettings

BUSY, GATHERING, LED, IDLE, NO_THREAD = 0, 1, 2, 3, 4
"""What the writer's thread does: looks at the queue again by itself; sleeps and wants to be woken for what is
urgent only; sleeps for a moment, since one thread writes its own records, and wants to be woken for any other's;
sleeps and wants to be woken for any record; does not run."""

_LATE_MOST = 512
"""Late records that wait beside the queue; those after them are queued, and counted, one by one."""


class Receipt(msgspec.Struct, gc=False, eq=False):
    """What `append` returns. Any thread and any loop may ask it; it costs 70 ns to make.

    `seq` is the record's number once it is written, else None.
    """

    _body: bytes
    _time: int
    _inlet: Inlet
    seq: int | None = None
    _error: JournalError | None = None
    _kept: bool = True
    """Whether anybody may ask what became of it."""

    def done(self) -> bool:
        """Whether the record's fate is known: durable (with `none`: written), or failed."""
        return self._error is not None or ((seq := self.seq) is not None and seq <= self._inlet.durable_through)

    async def durable(self) -> None:
        """Return once fdatasync returned for the record (with `none`: once it was written).

        Raises JournalError when it is not known to be on disk: it may or may not be read later. Works under
        asyncio, uvloop and trio.
        """
        inlet = self._inlet
        if self._error is None and ((seq := self.seq) is None or seq > inlet.durable_through):
            loop = _get_running_loop()
            if loop is None:
                await inlet.wait_trio(self)
            else:
                future = loop.create_future()
                if inlet._enlist(self, loop, future):
                    try:
                        await future
                    except BaseException:
                        inlet._delist(future)
                        raise
        if self._error is not None:
            raise type(self._error)(*self._error.args)

    def wait(self, timeout: float | None = None) -> bool:
        """`durable()` for threads: True, or False when `timeout` seconds passed first."""
        if not self.done() and not self._inlet.wait_blocking(self, timeout):
            return False
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        return True

    def _size(self) -> int:
        """Bytes that the record takes of the queue's bound."""
        return len(self._body)

    def __repr__(self) -> str:
        return f"<Receipt seq={self.seq} done={self.done()}>"


class Late(Receipt, gc=False, eq=False):
    """A record whose bytes are made when the writer takes it: many at once cost a fraction of one after each request.

    A subclass holds, by value, what the bytes are made of. `_body` is empty until then.
    """

    _guess: int = 512
    """About how long the bytes will be. It counts by this also when they are made, so that the sum comes out even."""

    @classmethod
    def _encode(cls, records: list[Self]) -> None:
        """Set `_body` of each, as `_inlet._fitted` returns it. On any thread, on two at the same time perhaps."""
        raise NotImplementedError

    def _size(self) -> int:
        return self._guess


@attrs.define
class Gap:
    """Records that were dropped because the queue was full."""

    count: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0


class Inlet:
    """The queue, its bounds and those who wait. `Journal` is built on it."""

    def __init__(self, settings: JournalSettings, now_ns: Callable[[], int]) -> None:
        self._settings = settings
        self._now_ns = now_ns
        self._max_records = settings.max_records
        self._max_bytes = int(settings.max_bytes)
        self._largest = HARD_LIMIT
        self._strict = settings.on_full != "gap"  # the caller must be told, or held, at this very record
        self.durable_through = -1
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a signal handler or a finalizer may append while this thread does
        self._queue: list[Receipt] = []
        self._late: deque[Late] = deque()  # appended to without the lock, taken from with it
        self._bytes = 0  # of the queue and of what the writer holds: until it is written it may come back
        self._held = 0  # of these, what the writer holds
        self._places = self._max_records  # how many may be queued beside what the writer holds
        self._gap: Gap | None = None
        self._closed = False
        self._level = NO_THREAD
        self._urgent = False
        self._leader = 0  # the thread that wrote its own records lately (durability: sync), while the writer's is LED
        self._trouble: JournalError | None = None
        self._waiters: dict[Any, Waiting] = {}  # by the waiter: each may leave at any time, all at once perhaps
        self._room: list[ThreadWaiter] = []
        self._dropped = 0

    # -- putting in

    def append(self, event: Mapping[str, object], *, now_ns: int | None = None) -> Receipt:
        """Queue an event; encoded here, bounded and escaped, never refused for its content. Thread-safe.

        Raises JournalClosed after `close`, JournalFull only with `on_full: refuse`.
        """
        settings = self._settings
        body = encode_event(event, field_bytes=settings.field_bytes, record_bytes=settings.record_bytes)
        return self.append_body(body, now_ns)

    def append_body(self, body: bytes, now_ns: int | None = None) -> Receipt:
        """Queue an event that is already encoded: the members of a JSON object, without braces.

        The members must not be called seq, time, prev or synced. A body that is too large or would break the line
        is kept cut, as text. About 0.6 µs; thread-safe; raises as `append` does.
        """
        body = self._fitted(body)
        receipt = Receipt(body, self._now_ns() if now_ns is None else now_ns, self)
        self._put(receipt, len(body))
        return receipt

    def append_late(self, record: Late) -> Receipt:
        """Queue a record that the writer will encode, and return it; as `append_body` else. 0.1 µs."""
        record._inlet = self
        late = self._late
        if self._strict or len(late) >= _LATE_MOST:
            return self._late_put(record)
        late.append(record)
        if self._level >= LED or self._closed:  # in this order: the writer looks the other way round before it sleeps
            with self._lock:
                self._gather()
                kick = self._level
            if self._closed and record._error is not None:
                raise record._error
            if kick >= LED:
                self._kick(kick)
        return record

    def _late_put(self, record: Late) -> Receipt:
        """Queue a late record, and make the bytes of what is late here: the writer is behind, and bytes are bounded."""
        with self._lock:
            self._gather()
            self._encoded([*self._queue[-_LATE_MOST:], record])
        self._put(record, record._guess)
        return record

    def _gather(self) -> None:
        """Put what is late into the queue; the lock is held."""
        late = self._late
        while late:
            receipt = late.popleft()
            size = receipt._guess
            if self._closed:
                receipt._error = self._closed_error()
            elif self._bytes + size > self._max_bytes or len(self._queue) >= self._places:
                self._drop(receipt, size)
            else:
                self._queue.append(receipt)
                self._bytes += size

    def _kick(self, level: int) -> None:
        if level != LED or self._leader != get_ident():
            self._rouse()

    def _put(self, receipt: Receipt, size: int) -> None:
        with self._lock:
            if self._late:
                self._gather()
            queue = self._queue
            if self._bytes + size > self._max_bytes or len(queue) >= self._places or self._closed:
                kick = -1
            else:
                queue.append(receipt)
                self._bytes += size
                kick = self._level
        if kick >= LED:
            self._kick(kick)
        elif kick < 0:
            self._refused(receipt)

    def _fitted(self, body: bytes) -> bytes:
        """`body` as it may stand in a line: on one, of a length that readers take, and steering no terminal."""
        if not 0 < len(body) <= self._largest or b"\n" in body:
            return self._oversized(body)
        if body.isascii():
            return body
        cleaned = clean_body(body)  # an escape takes more bytes than what it stands for
        return cleaned if len(cleaned) <= self._largest else self._oversized(cleaned)

    def _encoded(self, batch: list[Receipt]) -> None:
        """Have the bytes made of what was queued without."""
        late = [receipt for receipt in batch if not receipt._body]
        for kind in {type(receipt) for receipt in late}:
            assert issubclass(kind, Late)
            records = [receipt for receipt in late if type(receipt) is kind]
            try:
                kind._encode(records)
            except Exception as error:
                lost = encode_event({"kind": "journal.unencoded", "error": f"{type(error).__name__}: {error}"})
                for record in records:
                    record._body = record._body or lost

    def _oversized(self, body: bytes) -> bytes:
        if not body:
            return b'"event":{}'
        try:
            event = msgspec.json.decode(b"{" + body.replace(b"\n", b" ") + b"}", type=dict)
        except (msgspec.DecodeError, UnicodeDecodeError):
            event = {"unreadable": body[:4096].decode("utf-8", "replace"), "bytes": len(body)}
        settings = self._settings
        return encode_event(event, field_bytes=settings.field_bytes, record_bytes=settings.record_bytes)

    def _refused(self, receipt: Receipt) -> None:
        """The queue is full, or the journal is closed."""
        policy = self._settings.on_full
        size = receipt._size()
        while True:
            with self._lock:
                if self._closed:
                    raise self._closed_error()
                if self._bytes + size <= self._max_bytes and len(self._queue) < self._places:
                    self._queue.append(receipt)
                    self._bytes += size
                    break
                if policy != "block":
                    error = self._drop(receipt, size)
                    if policy == "refuse":
                        raise error
                    return
                waiter = ThreadWaiter()
                self._room.append(waiter)
            self._rouse()
            waiter.wait(1.0)  # the writer wakes it; the timeout only covers a writer that a fork took away
        self._rouse()

    @staticmethod
    def _closed_error() -> JournalClosed:
        return JournalClosed("the journal was closed before this record; the record was not kept")

    def _drop(self, receipt: Receipt, size: int) -> JournalFull:
        """Let a record go that finds no room; the lock is held."""
        self._dropped += 1
        gap = self._settings.on_full == "gap"
        receipt._error = error = JournalFull(
            f"{len(self._queue)} records ({self._bytes} bytes) wait for the disk and there is no room for "
            "more; this record was not kept" + ("; a gap record counts it" if gap else "")
        )
        if gap:
            self._count_gap(receipt, size)
        return error

    def _count_gap(self, receipt: Receipt, size: int) -> None:
        gap = self._gap
        if gap is None:
            gap = self._gap = Gap(first_ns=receipt._time)
        gap.count += 1
        gap.bytes += size
        gap.last_ns = receipt._time

    # -- taking out (the writer)

    def _take(self, limit: int) -> tuple[list[Receipt], Gap | None]:
        """The oldest records, up to `limit` bytes, and the gap when nothing is left before it."""
        with self._lock:
            self._gather()
            queue, gap = self._queue, None
            size = self._bytes
            if size <= limit:
                self._queue = []
                gap, self._gap = self._gap, None
            else:
                size = count = 0
                for receipt in queue:
                    one = receipt._size()
                    if count and size + one > limit:
                        break
                    size += one
                    count += 1
                self._queue, queue = queue[count:], queue[:count]
            self._held = size
            self._places = self._max_records - len(queue)
        return queue, gap

    def _written(self) -> None:
        """What was taken is in the file: there is room for others."""
        with self._lock:
            self._bytes -= self._held
            self._held, self._places = 0, self._max_records
            room, self._room = self._room, []
        for waiter in room:
            waiter.wake()

    def _put_back(self, batch: list[Receipt], gap: Gap | None) -> None:
        """What could not be written goes back to the front, in order."""
        with self._lock:
            self._queue[:0] = batch
            self._held, self._places = 0, self._max_records
            if gap is not None:
                newer = self._gap
                if newer is not None:
                    gap.count += newer.count
                    gap.bytes += newer.bytes
                    gap.last_ns = newer.last_ns
                self._gap = gap

    # -- waiting

    def _rouse(self) -> None:
        """Have the writer look at the queue; implemented by the journal."""
        raise NotImplementedError

    def _enlist(self, receipt: Receipt, loop: AbstractEventLoop | None, waiter: Any) -> bool:
        """Note who waits; False when the record's fate is known already."""
        with self._lock:
            if self._late:
                self._gather()
            if receipt._error is not None or ((seq := receipt.seq) is not None and seq <= self.durable_through):
                return False
            if self._trouble is not None:
                receipt._error = self._trouble
                return False
            self._waiters[waiter] = receipt, loop, waiter
            self._urgent = True
            kick = self._level
        if kick:
            self._rouse()
        return True

    def _delist(self, waiter: Any) -> None:
        with self._lock:
            self._waiters.pop(waiter, None)

    async def wait_trio(self, receipt: Receipt) -> None:
        """Wait in a trio task until the record's fate is known."""
        waiter = TrioWaiter()
        if not self._enlist(receipt, None, waiter):
            return
        try:
            await waiter.wait()
        except BaseException:
            self._delist(waiter)
            raise

    def wait_blocking(self, receipt: Receipt, timeout: float | None) -> bool:
        """Wait on this thread until the record's fate is known."""
        waiter = ThreadWaiter()
        if not self._enlist(receipt, None, waiter):
            return True
        if waiter.wait(timeout):
            return True
        self._delist(waiter)
        return receipt.done()
