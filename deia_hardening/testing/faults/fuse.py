"""A file system of one file, which is a disk that notes each write and flush: FUSE's kernel protocol, by hand.

No library is needed: /dev/fuse is read and answered as `include/uapi/linux/fuse.h` lays it out. Root only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_NAME = b"disk"
_MAX_WRITE = 1 << 20
_FORGET, _BATCH_FORGET, _INTERRUPT = 2, 42, 36


class DiskFile:
    """The file `disk` below `folder`, kept in memory; `note(kind, offset, data)` hears `write` and `flush`."""

    def __init__(self, folder: Path, size: int, note: Callable[[str, int, bytes], None]) -> None:
        self.image = bytearray(size)
        self.path = folder / "disk"
        self._folder = folder
        self._note = note
        self._libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self._libc.mount(b"deia-fault-disk", os.fsencode(folder), b"fuse", 2 | 4, options) != 0:  # NOSUID, NODEV
            code = ctypes.get_errno()
            os.close(self._device)
            raise OSError(code, f"mounting FUSE at {folder}: {os.strerror(code)}")
        self._thread = threading.Thread(target=self._serve, name="deia-fault-disk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unmount, and end the thread."""
        self._libc.umount2(os.fsencode(self._folder), 2)  # MNT_DETACH
        self._thread.join(10)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, _MAX_WRITE + 65536)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                continue
            try:
                answer, code = self._answer(opcode, node, request[_IN.size :]), 0
            except OSError as error:
                answer, code = b"", -(error.errno or errno.EIO)
            try:
                os.write(self._device, _OUT.pack(_OUT.size + len(answer), code, unique) + answer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the request was interrupted
                    return

    def _attributes(self, node: int) -> bytes:
        folder = node == 1
        size = 0 if folder else len(self.image)
        mode = stat.S_IFDIR | 0o700 if folder else stat.S_IFREG | 0o600
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == 16:  # WRITE
            _, offset, size = struct.unpack_from("<QQI", body)
            data = body[40 : 40 + size]
            self.image[offset : offset + size] = data
            self._note("write", offset, data)
            return struct.pack("<II", size, 0)
        if opcode == 15:  # READ
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(self.image[offset : offset + size])
        if opcode == 20:  # FSYNC
            self._note("flush", 0, b"")
            return b""
        if opcode == 26:  # INIT
            return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 16, 12, _MAX_WRITE, 1, 256, 0, *[0] * 8)
        if opcode == 1:  # LOOKUP
            if node != 1 or body.rstrip(b"\0") != _NAME:
                raise OSError(errno.ENOENT, "no such file")
            return struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + self._attributes(2)
        if opcode in (3, 4):  # GETATTR, SETATTR
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if opcode in (14, 27):  # OPEN, OPENDIR
            return struct.pack("<QII", 0, 0, 0)
        if opcode in (18, 25, 29, 38):  # RELEASE, FLUSH, RELEASEDIR, DESTROY
            return b""
        if opcode == 17:  # STATFS
            return struct.pack("<5Q4I24x", len(self.image) // 4096, 0, 0, 2, 0, 4096, 255, 4096, 0)
        raise OSError(errno.ENOSYS, "not a call that a disk needs")
