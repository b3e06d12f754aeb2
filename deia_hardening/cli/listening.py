"""The listening sockets of `run`: bound once by its supervisor, inherited by every worker, never closed in between.

A socket is bound before the first worker starts and listens from the moment that it serves; from then on connections
wait in the kernel while workers are replaced.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from pathlib import Path

from deia_hardening.errors import HardeningError

TAKEN_PATIENCE = 5.0
"""Seconds that a taken address is tried for: the workers of a supervisor that was killed leave it at once."""

_PAUSE = 0.05


def bind_tcp(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any free one). Raises HardeningError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise HardeningError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + TAKEN_PATIENCE
    while True:
        try:
            bound.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port and time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            bound.close()
            raise HardeningError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
        return bound


def bind_unix(path: Path) -> socket.socket:
    """A socket bound to `path`. A socket that nobody answers on is replaced. Raises HardeningError."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mode = _make_room(path)
        bound.bind(str(path))
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise HardeningError(f"can't listen on {path}: {error.strerror or error}") from None
    except HardeningError:
        bound.close()
        raise
    return bound


def _make_room(path: Path) -> int:
    """Remove a dead socket; returns the mode for the new one: the old one's, else everybody's, as servers do."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0o666
    if not stat.S_ISSOCK(found.st_mode):
        raise HardeningError(f"can't listen on {path}: there is something that is no socket; nothing was changed")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return stat.S_IMODE(found.st_mode)
    raise HardeningError(f"can't listen on {path}: another process does")


def place_of(bound: socket.socket) -> str:
    """Where a socket listens, for a person."""
    if bound.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(bound.getsockname())}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
