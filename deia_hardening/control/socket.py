"""The control socket of a home: one worker owns it; when that worker dies, another binds it.

Ownership is a lock on `run/control.lock` that the kernel drops with its holder, so there is nothing to clean up and
nobody to ask. All workers hold `run/control.here` together, which tells a caller that the socket is only changing
hands. Several apps of a process with one home share the socket; a request names its app in `deia-app`, else gets the
first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from deia_hardening.control.http import Request, Response, Way, problem_response
from deia_hardening.control.paths import make_folder, presence, run_folder, socket_path
from deia_hardening.control.server import Connections, Handler
from deia_hardening.control.settings import ControlSettings
from deia_hardening.problem import Problem

logger = logging.getLogger("deia_hardening.control")

_BACKLOG: Final = 64


class HomeSocket:
    """The socket of one home in this process. All methods run on the background loop."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = socket_path(home)
        self._apps: dict[str, Handler] = {}
        self._lock = self._presence = -1
        self._server: asyncio.Server | None = None
        self._connections: Connections | None = None
        self._listening: socket.socket | None = None

    @property
    def owned(self) -> bool:
        """Whether this process serves the home's control plane."""
        return self._lock >= 0

    def add(self, name: str, handler: Handler) -> Callable[[], None]:
        """An app joins; returns what takes it out again."""
        unique, number = name, 1
        while unique in self._apps:
            number += 1
            unique = f"{name}-{number}"
        self._apps[unique] = handler
        return lambda: self._apps.pop(unique, None) and None

    async def try_own(self, blocking: Callable[..., Awaitable[bool]], settings: Callable[[], ControlSettings]) -> bool:
        """Bind the socket if nobody else holds it; whether it is ours. Raises OSError."""
        if self._lock < 0 and not await blocking(self._take):
            return False
        if self._server is None and settings().socket:
            await blocking(self._bind)
            assert self._listening is not None
            self._connections = Connections(self._handle, settings, Way.SOCKET)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(self._connections, sock=self._listening)
        return True

    def _take(self) -> bool:
        """Lock the home. Blocking."""
        make_folder(self.path, self.home)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._presence < 0:
            _sockets.add(self)
            self._presence = os.open(presence(self.home), flags, 0o600)
            fcntl.flock(self._presence, fcntl.LOCK_SH)  # at most a caller's look is waited for
        lock = os.open(run_folder(self.home) / "control.lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return True

    def _bind(self) -> bool:
        """Bind the socket. Blocking."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            # Under a name of its own first: from the moment that the name is the real one, it is 0600 and answers.
            beside = self.path.with_name(f".{os.getpid() % 100000}")
            beside.unlink(missing_ok=True)
            listening.bind(str(beside))
            beside.chmod(0o600)
            listening.listen(_BACKLOG)
            beside.rename(self.path)
        except BaseException:
            listening.close()
            raise
        self._listening = listening
        return True

    async def close(self, blocking: Callable[..., Awaitable[None]]) -> None:
        """Stop answering and let another worker own it. With several apps: when the last has left."""
        if self._apps:
            return
        here, self._presence = self._presence, -1
        if here >= 0:
            os.close(here)
        if self._lock < 0:
            return
        server, self._server = self._server, None
        connections, self._connections = self._connections, None
        lock, self._lock, self._listening = self._lock, -1, None
        if server is not None:
            server.close()
        if connections is not None:
            connections.close()
        await blocking(self._give_up, lock)

    def _give_up(self, lock: int) -> None:
        """Remove the socket's name, then the lock: never the name of a successor's. Blocking."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        if lock >= 0:
            os.close(lock)

    async def _handle(self, request: Request) -> Response:
        wanted = request.headers.get("deia-app")
        handler = next(iter(self._apps.values()), None) if wanted is None else self._apps.get(wanted)
        if handler is None:
            listed = ", ".join(sorted(self._apps)) or "none"
            return problem_response(Problem(404, f"no such app runs on this home; there is: {listed}"))
        return await handler(request)

    def after_fork(self) -> None:
        """The child owns nothing: its copies are closed, which frees neither the parent's lock nor its socket."""
        for descriptor in (self._lock, self._presence):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        if self._listening is not None:
            with contextlib.suppress(OSError):
                os.close(self._listening.detach())
        self._lock = self._presence = -1
        self._listening, self._server, self._connections = None, None, None
        self._apps.clear()


_homes: weakref.WeakValueDictionary[Path, HomeSocket] = weakref.WeakValueDictionary()
_sockets: weakref.WeakSet[HomeSocket] = weakref.WeakSet()


def socket_of(home: Path) -> HomeSocket:
    """The process's socket object for a home."""
    found = _homes.get(home)
    if found is None:
        found = _homes[home] = HomeSocket(home)
    return found


def _after_fork() -> None:
    for each in list(_sockets):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
