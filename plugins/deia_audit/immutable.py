"""The immutable attribute of sealed segments (`chattr +i`), where the settings ask for it.

Linux only, on file systems that have it, and only with the right to set it (CAP_LINUX_IMMUTABLE); elsewhere the reason
is returned, for health. Blocking. It stops accidents and whoever is not root; root takes it off again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

_GET, _SET = 0x80086601, 0x40086602
"""FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h, on 64-bit machines."""
_IMMUTABLE = 0x10
_INT = struct.Struct("i")


def set_immutable(path: Path, on: bool) -> str:
    """Set or clear the attribute of `path`; "" when it is so now, else why it could not be."""
    if sys.platform != "linux":
        return "there is no immutable attribute on this system"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        return str(error)
    try:
        (flags,) = _INT.unpack(fcntl.ioctl(descriptor, _GET, _INT.pack(0)))
        wanted = flags | _IMMUTABLE if on else flags & ~_IMMUTABLE
        if wanted != flags:
            fcntl.ioctl(descriptor, _SET, _INT.pack(wanted))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return "this process may not set the immutable attribute (CAP_LINUX_IMMUTABLE)"
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return "the file system has no immutable attribute"
        return str(error)
    finally:
        os.close(descriptor)
    return ""


def is_immutable(path: Path) -> bool:
    """Whether the attribute is set; False where there is none."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        (flags,) = _INT.unpack(fcntl.ioctl(descriptor, _GET, _INT.pack(0)))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(flags & _IMMUTABLE)
