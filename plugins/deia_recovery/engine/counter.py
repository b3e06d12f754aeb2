"""The position of the newest commit, in eight bytes that every worker of the machine maps.

The writer sets it while it holds SQLite's write lock, just before COMMIT: a reader whose cache stands at this
position knows that nothing was committed since. It is a hint that is never older than the truth; the database
decides what is committed, and a value left by a crash is put right at the next opening.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_SIZE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ssize_t,
)


class PositionPage:
    """One aligned 64-bit number in a mapped file; loads and stores are single machine instructions.

    The standard library's mmap keeps a descriptor open; this mapping holds none. It is never unmapped, so that a
    thread which is just reading it can't fault: a page per generation that the process has used.
    """

    __slots__ = ("cells",)

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE:
                os.ftruncate(fd, _SIZE)
            address = _libc.mmap(None, _SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                raise OSError(ctypes.get_errno(), f"{path} can't be mapped")
        finally:
            os.close(fd)
        self.cells = (ctypes.c_uint64 * 1).from_address(address)
        """`cells[0]` is the position: read it directly, it is what the request path does."""

    @property
    def position(self) -> int:
        return self.cells[0]

    @position.setter
    def position(self, value: int) -> None:
        self.cells[0] = value
