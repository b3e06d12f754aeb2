"""Compressed segments that can be read from the middle: gzip members of 64 KiB of text each.

As BGZF (SAM/BAM specification, section 4.1) does it: every member says its own compressed size in an extra
field, so a reader hops from member to member; `zcat` and `gunzip` read the whole as one file.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 65536
"""Bytes of text in each member but the last."""
_HEAD = struct.Struct("<4sIBBH2sHI")  # magic+method+flags, mtime, xfl, os, xlen, subfield id, its length, member size
_MAGIC = b"\x1f\x8b\x08\x04"
_FOOT = struct.Struct("<II")


class DamagedBlock(ValueError):  # noqa: N818
    """A compressed segment's bytes are not what was written."""


def _member(text: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    packed = packer.compress(text) + packer.flush()
    size = _HEAD.size + len(packed) + _FOOT.size
    head = _HEAD.pack(_MAGIC, 0, 0, 255, 8, b"DJ", 4, size)
    return head + packed + _FOOT.pack(zlib.crc32(text), len(text))


def compress_file(source: Path, target: int, level: int = 6, stop: Callable[[], bool] = lambda: False) -> None:
    """Write `source` compressed to the empty file behind descriptor `target` and sync it. zlib runs without the GIL.

    Raises InterruptedError when `stop()` becomes true between two blocks.
    """
    with open(source, "rb") as reader, open(target, "wb", closefd=False) as writer:
        while block := reader.read(BLOCK):
            if stop():
                raise InterruptedError("the journal is closing; a later start compresses this segment")
            writer.write(_member(block, level))
        writer.flush()
        os.fsync(target)


class BlockReader:
    """Reads a compressed segment at offsets of its text. Not thread-safe; close it after use."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offsets = [0]
        self._complete = False
        self._cached = (-1, b"")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, number: int) -> int | None:
        """Where member `number` begins; None past the end."""
        while len(self._offsets) <= number and not self._complete:
            here = self._offsets[-1]
            head = os.pread(self._descriptor, _HEAD.size, here)
            if not head:
                self._complete = True
                self._offsets.pop()
                break
            if len(head) < _HEAD.size or head[:4] != _MAGIC or head[12:14] != b"DJ":
                raise DamagedBlock(f"no compressed block where one should begin, at byte {here}")
            size = _HEAD.unpack(head)[-1]
            if size <= _HEAD.size + _FOOT.size:
                raise DamagedBlock(f"impossible size of the compressed block at byte {here}")
            self._offsets.append(here + size)
        return self._offsets[number] if number < len(self._offsets) else None

    def _block(self, number: int) -> bytes:
        if self._cached[0] == number:
            return self._cached[1]
        start = self._find(number)
        if start is None:
            return b""
        head = os.pread(self._descriptor, _HEAD.size, start)
        if not head:
            return b""
        if len(head) < _HEAD.size or head[:4] != _MAGIC:
            raise DamagedBlock(f"no compressed block where one should begin, at byte {start}")
        size = _HEAD.unpack(head)[-1]
        raw = os.pread(self._descriptor, size, start)
        if len(raw) < size or size <= _HEAD.size + _FOOT.size:
            raise DamagedBlock(f"the compressed block at byte {start} is cut short")
        try:
            unpacker = zlib.decompressobj(-15)
            text = unpacker.decompress(raw[_HEAD.size : -_FOOT.size], BLOCK + 1)
        except zlib.error as error:
            raise DamagedBlock(f"the compressed block at byte {start}: {error}") from error
        # the fixed bytes too, so that a flip of any byte of the file is found
        if head != _HEAD.pack(_MAGIC, 0, 0, 255, 8, b"DJ", 4, size) or raw[-_FOOT.size :] != _FOOT.pack(
            zlib.crc32(text), len(text)
        ):
            raise DamagedBlock(f"the compressed block at byte {start} has another checksum than its text")
        self._cached = (number, text)
        return text

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of text at `offset`; fewer only at the end. Raises DamagedBlock."""
        parts: list[bytes] = []
        number, skip = divmod(offset, BLOCK)
        while size > 0:
            block = self._block(number)[skip : skip + size]
            if not block:
                break
            parts.append(block)
            size -= len(block)
            number, skip = number + 1, 0
        return b"".join(parts)

    def length(self) -> int:
        """Bytes of text in all."""
        number = 0
        while self._find(number) is not None:
            number += 1
        last = len(self._offsets) - 1
        return 0 if last < 0 else last * BLOCK + len(self._block(last))

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """The text from `start` on, a member at a time."""
        number, skip = divmod(start, BLOCK)
        while text := self._block(number):
            yield text[skip:]
            number, skip = number + 1, 0
