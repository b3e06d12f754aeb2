"""Reading SQLite's write-ahead log without SQLite: which frames count, and whether any were lost.

The format is section 4 of "Database File Format" (sqlite.org/fileformat2.html). SQLite stops at the first frame
whose checksum fails and calls the rest unwritten; after a bit flip that silently drops acknowledged commits. Since
each commit is synced before the next begins, a frame that follows another commit's end proves such a loss.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import attrs

from deia_recovery.engine.files import read_pieces

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC_LITTLE = 0x377F0682
_MAGIC_BIG = 0x377F0683
_MASK = 0xFFFFFFFF
_FRAME_HEAD = struct.Struct(">II8s")
_BLOCK = 1 << 20
"""Bytes of log that are read at once."""
_SECTOR = 512
"""The least that any disk writes whole."""


@attrs.frozen
class WalState:
    """What a log holds.

    `frames` valid frames of committed transactions; `pages` maps a page number to the offset of its newest
    committed image; `lost` says that synced commits beyond them can't be read any more; `headless` that the log's
    header is broken, so that SQLite ignores the whole of it.
    """

    frames: int = 0
    page_size: int = 0
    pages: dict[int, int] = attrs.field(factory=dict)
    database_pages: int = 0
    lost: bool = False
    headless: bool = False
    detail: str = ""


def _sum(data: bytes, s1: int, s2: int, order: str) -> tuple[int, int]:
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    if len(data) % 32 == 0:  # eight at a time with one mask: half the time, and a start after a crash sums a whole log
        for a, b, c, d, e, f, g, h in zip(*[words] * 8, strict=True):
            s1 += a + s2
            s2 += b + s1
            s1 += c + s2
            s2 += d + s1
            s1 += e + s2
            s2 += f + s1
            s1 = (s1 + g + s2) & _MASK
            s2 = (s2 + h + s1) & _MASK
    for a, b in zip(words, words, strict=True):
        s1 = (s1 + a + s2) & _MASK
        s2 = (s2 + b + s1) & _MASK
    return s1, s2


def read_wal(path: Path) -> WalState:
    """Check every frame of the log at `path`. A missing or empty one holds nothing."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return WalState()
    with stream:
        head = stream.read(_HEADER.size)
        if len(head) < _HEADER.size or not any(head):
            return WalState()
        magic, _version, page_size, _sequence, salt1, salt2, c1, c2 = _HEADER.unpack(head)
        page_size = 65536 if page_size == 1 else page_size
        if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or page_size < 512 or page_size & (page_size - 1):
            return WalState(headless=True, detail="the header of the log is not one")
        order = "<" if magic == _MAGIC_LITTLE else ">"
        s1, s2 = _sum(head[:24], 0, 0, order)
        if (s1, s2) != (c1, c2):
            return WalState(page_size=page_size, headless=True, detail="the header of the log fails its checksum")
        return _frames(stream, page_size, salt1, salt2, s1, s2, order)


def _frames(stream: BinaryIO, page_size: int, salt1: int, salt2: int, s1: int, s2: int, order: str) -> WalState:
    read = stream.read
    pages: dict[int, int] = {}
    open_pages: dict[int, int] = {}
    frames = index = size = 0
    offset = _HEADER.size
    while True:
        head = read(_FRAME.size)
        data = read(page_size)
        if len(data) < page_size:
            return WalState(frames, page_size, pages, size)
        number, database_pages, f1, f2, c1, c2 = _FRAME.unpack(head)
        if (f1, f2) != (salt1, salt2):
            break
        s1, s2 = _sum(head[:8], s1, s2, order)
        s1, s2 = _sum(data, s1, s2, order)
        if (s1, s2) != (c1, c2) or not number:
            break
        index += 1
        open_pages[number] = offset + _FRAME.size
        if database_pages:
            pages.update(open_pages)
            open_pages = {}
            frames, size = index, database_pages
        offset += _FRAME.size + page_size
    lost = _commit_follows(head, data, offset, read, salt1, salt2, order)
    detail = f"frame {index + 1} of the log is broken and later commits stand behind it" if lost else ""
    return WalState(frames, page_size, pages, size, lost, detail=detail)


def _commit_follows(
    head: bytes, data: bytes, offset: int, read: Callable[[int], bytes], salt1: int, salt2: int, order: str
) -> bool:
    """Whether a further transaction of this log's generation begins after the broken one ended.

    A power cut may leave an older generation's half of a head that lies across two sectors, and with it a commit that
    none is: such a head counts only where its checksum continues the one that stands in the frame before.
    """
    page_size = len(data)
    ended = False
    before: tuple[int, int] | None = None
    while True:
        number, database_pages, f1, f2, c1, c2 = _FRAME.unpack(head)
        ours = (f1, f2) == (salt1, salt2) and number != 0
        if ours and ended:
            return True
        if ours and database_pages:
            across = offset % _SECTOR > _SECTOR - _FRAME.size
            ended = not across or (before is not None and _continues(head, data, before, order) == (c1, c2))
        before = (c1, c2)
        offset += _FRAME.size + page_size
        head = read(_FRAME.size)
        data = read(page_size)
        if len(data) < page_size:
            return False


def _continues(head: bytes, data: bytes, before: tuple[int, int], order: str) -> tuple[int, int]:
    """The checksum of a frame, behind one with the checksum `before`."""
    return _sum(data, *_sum(head[:8], *before, order), order)


class LogTail:
    """Reads a growing log: each call of `newest` looks at what came since the call before.

    Of a page that was written many times a checkpoint moves the newest image only, or none where readers still stand
    before that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._salts = b""
        self._read = 0

    def newest(self, salts: bytes, frames: int) -> Iterator[tuple[int, memoryview]]:
        """(page number, page) of the frames up to number `frames`, of the log that carries `salts`.

        Both come from the index that SQLite's connections share: frames beyond may be half written.
        """
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            head = os.pread(fd, _HEADER.size, 0)
            if len(head) < _HEADER.size or head[16:24] != salts:
                return
            page_size = _HEADER.unpack(head)[2]
            page_size = 65536 if page_size == 1 else page_size
            if salts != self._salts:
                self._salts, self._read = salts, 0
            numbers = {offset: number for number, offset in self._offsets(fd, page_size, frames).items()}
            for offset, page in read_pieces(fd, numbers, page_size):
                yield numbers[offset], page
        finally:
            os.close(fd)

    def _offsets(self, fd: int, page_size: int, stop: int) -> dict[int, int]:
        """Where the newest image of each page begins, among the frames behind the last call's up to `stop`."""
        found: dict[int, int] = {}
        size = _FRAME.size + page_size
        at_once = max(1, _BLOCK // size)
        unpack = _FRAME_HEAD.unpack_from
        salts = self._salts
        while self._read < stop:
            count = min(at_once, stop - self._read)
            first = _HEADER.size + self._read * size
            block = os.pread(fd, count * size, first)
            for place in range(0, len(block) - size + 1, size):
                number, _, theirs = unpack(block, place)
                if theirs != salts:
                    return found
                found[number] = first + place + _FRAME.size
                self._read += 1
            if len(block) < count * size:
                break
        return found


def stray_images(path: Path, page_size: int) -> dict[int, bytes]:
    """The newest image of each page in a log whose header is broken: the frames that carry the first one's salts."""
    images: dict[int, bytes] = {}
    with path.open("rb") as stream:
        stream.seek(_HEADER.size)
        salts = None
        while True:
            frame = stream.read(_FRAME.size)
            data = stream.read(page_size)
            if len(data) < page_size:
                return images
            number, _size, f1, f2, _s1, _s2 = _FRAME.unpack(frame)
            salts = salts or (f1, f2)
            if (f1, f2) != salts or not number:
                return images
            images[number] = data
