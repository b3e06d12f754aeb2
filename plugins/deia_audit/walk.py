"""Walks a whole log in ranges, in order, with several processes hashing ahead; memory stays flat.

Blocking, reads only. A small log is read in this process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue

import attrs
import msgspec

import deia_audit
import deia_hardening
from deia_audit.scan import BOOT, Part, Range, scan_range
from deia_hardening import journal
from deia_hardening.journal import Segment
from deia_hardening.journal.reader import SegmentText

_JOIN = 60.0
"""Seconds for a worker to end its last range; it reads RANGE bytes at most."""
RANGE = 2 << 20
"""Bytes of text in a range: its lines stay in a processor's cache, 8 MiB took a fifth longer."""
SMALL = 32 << 20
"""A log below this many bytes is read by this process alone."""
_LOOK = 1 << 17
_LOOKS = 10
_LOOK_AGAIN = 0.02
"""Seconds between two looks for a segment that a rotation or compression is just renaming."""


@attrs.frozen
class Piece:
    """One range of a segment: the segment, whether it is its first, its header line there, and what follows it.

    `torn` is what stands after the last newline of the segment's last range.
    """

    segment: Segment
    task: Range
    header: bytes | None
    torn: bytes


def pieces_of(segment: Segment, limit: int | None = None) -> Iterator[Piece]:
    """Cut a segment into ranges at lines' starts. Raises OSError, ValueError for what can't be read."""
    with SegmentText(segment) as text:
        size = text.size() if limit is None else min(limit, text.size())
        head = text.read(0, _LOOK)
        header, newline, _rest = head.partition(b"\n")
        at = len(header) + 1 if newline else 0
        first: bytes | None = header if newline else b""
        while True:
            stop = min(at + RANGE, size)
            end = _line_end(text, at, stop, size)
            torn = text.read(end, size - end) if stop >= size else b""
            yield Piece(segment, Range(str(segment.path), segment.compressed, at, end), first, torn)
            if stop >= size:
                return
            at, first = end, None


def _line_end(text: SegmentText, start: int, stop: int, size: int) -> int:
    """Return the end of the last line that begins at or after `start` and ends at or before `stop`, or the next one."""
    back = stop
    while back > start:
        begin = max(start, back - _LOOK)
        found = text.read(begin, back - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        back = begin
    ahead = stop
    while ahead < size:
        found = (piece := text.read(ahead, _LOOK)).find(b"\n")
        if found >= 0:
            return ahead + found + 1
        ahead += len(piece)
    return start


def _packages() -> list[str]:
    """Return the packages that a worker imports from, with their folders."""
    return [f"{package.__name__}={package.__path__[0]}" for package in (deia_audit, deia_hardening, journal)]


class _Worker:
    """One hashing process, driven by one thread."""

    def __init__(self, todo: Queue[tuple[Piece, Queue[Part]] | None]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, os.pathsep.join(filter(None, sys.path)), *_packages()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True,
        )  # fmt: skip
        self.thread = threading.Thread(target=self._drive, args=(todo,), daemon=True)
        self.thread.start()

    def _drive(self, todo: Queue[tuple[Piece, Queue[Part]] | None]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        while (job := todo.get()) is not None:
            piece, answer = job
            try:
                data = msgspec.msgpack.encode(piece.task)
                self.process.stdin.write(len(data).to_bytes(4, "big") + data)
                self.process.stdin.flush()
                head = self.process.stdout.read(4)
                body = self.process.stdout.read(int.from_bytes(head, "big")) if len(head) == 4 else b""
                answer.put(msgspec.msgpack.decode(body, type=Part))
            except (OSError, msgspec.DecodeError):
                answer.put(scan_range(piece.task))  # the process is gone: this one can do it too

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()  # it only reads, and ending by itself takes an interpreter a quarter of a second
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


Find = Callable[[Segment], Segment]
"""Where a segment is now: it may have been sealed or compressed since it was listed."""


def walk(
    segments: list[Segment],
    *,
    processes: int | None = None,
    find: Find,
    on_error: Callable[[Segment, str], None],
) -> Iterator[tuple[Piece, Part]]:
    """Yield every range with what it holds, in order.

    `find` is asked where a segment is before it is read. A segment that can't be cut is told to `on_error` and ends it.
    """
    for piece, part in _scanned(segments, processes, find, on_error):
        if part.error or part.bad >= 0 or piece.segment.live:  # it may have been moved under the reader's eyes
            now = find(piece.segment)
            if now.path != piece.segment.path:
                task = Range(str(now.path), now.compressed, piece.task.start, piece.task.end)
                yield Piece(now, task, piece.header, b""), scan_range(task)
                continue
        yield piece, part


def _scanned(
    segments: list[Segment], processes: int | None, find: Find, on_error: Callable[[Segment, str], None]
) -> Iterator[tuple[Piece, Part]]:
    count = processes if processes is not None else os.cpu_count() or 1
    if sum(segment.size for segment in segments) < SMALL or count < 2:
        for piece in _pieces(segments, find, on_error):
            yield piece, scan_range(piece.task)
        return
    todo: Queue[tuple[Piece, Queue[Part]] | None] = Queue()
    workers = [_Worker(todo) for _ in range(count)]
    waiting: list[tuple[Piece, Queue[Part]]] = []
    try:
        for piece in _pieces(segments, find, on_error):
            answer: Queue[Part] = Queue(1)
            todo.put((piece, answer))
            waiting.append((piece, answer))
            if len(waiting) > 2 * count:
                first, ready = waiting.pop(0)
                yield first, ready.get()
        for first, ready in waiting:
            yield first, ready.get()
    finally:
        for _ in workers:
            todo.put(None)
        for worker in workers:
            worker.thread.join(timeout=_JOIN)
            worker.close()


def _pieces(segments: list[Segment], find: Find, on_error: Callable[[Segment, str], None]) -> Iterator[Piece]:
    for segment in segments:
        for left in reversed(range(_LOOKS)):
            try:
                yield from pieces_of(find(segment))
                break
            except FileNotFoundError as error:  # told as it is opened: it may just be getting its other name
                if not left:
                    on_error(segment, str(error))
                    return
                time.sleep(_LOOK_AGAIN)
            except (OSError, ValueError) as error:
                on_error(segment, str(error) or type(error).__name__)
                return
