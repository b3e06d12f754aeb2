"""One worker process as its supervisor sees it: spawned, heard, told, reaped.

Everything that must survive the supervisor's own replacement is a number: the process id and the channel's descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from deia_hardening.cli.channel import Lines, Message, tell
from deia_hardening.cli.options import CHANNEL_VARIABLE, LISTEN_VARIABLE, RunOptions
from deia_hardening.upstream import keeping

PROGRAM = ("-m", "deia_hardening.cli.worker")


class Worker:
    """A worker process. `ready` is set when it serves, `gone` when it has ended; `code` is its exit code then."""

    def __init__(self, pid: int, channel: socket.socket, hear: Callable[[Worker, Message], None]) -> None:
        self.pid = pid
        self.channel = channel
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.code: int | None = None
        self.retired = False
        self._hear = hear
        self._lines = Lines()
        channel.setblocking(False)
        asyncio.get_running_loop().add_reader(channel, self._read)

    @classmethod
    def spawn(
        cls,
        options: RunOptions,
        listening: Sequence[socket.socket],
        line: socket.socket | None,
        hear: Callable[[Worker, Message], None],
    ) -> Worker:
        """Start one: a fresh interpreter that inherits the sockets and a line to the keeper. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            theirs.set_inheritable(True)
            kept: dict[str, str] = {}
            if line is not None:
                line.set_inheritable(True)
                kept = {keeping.VARIABLE: str(line.fileno())}
            environment = {
                **os.environ,
                **options.to_environment(),
                **kept,
                CHANNEL_VARIABLE: str(theirs.fileno()),
                LISTEN_VARIABLE: ",".join(str(one.fileno()) for one in listening),
            }
            pid = os.posix_spawn(sys.executable, [sys.executable, *PROGRAM], environment, setsigmask=())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if line is not None:
                line.close()
        return cls(pid, ours, hear)

    def _read(self) -> None:
        try:
            data = self.channel.recv(65_536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        for message in self._lines.feed(data):
            if message["t"] == "ready":
                self.ready.set()
            else:
                self._hear(self, message)
        if not data:
            asyncio.get_running_loop().remove_reader(self.channel)

    def tell(self, kind: str, **fields: object) -> None:
        """Send a message; one that is gone does not hear it."""
        tell(self.channel, kind, **fields)

    def reap(self) -> None:
        """Notice its end, if it has come."""
        if self.gone.is_set():
            return
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(ValueError, OSError):
                asyncio.get_running_loop().remove_reader(self.channel)
            self.channel.close()
            self.gone.set()

    def kill(self) -> None:
        """End it at once."""
        if not self.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def served(self, timeout: float) -> str:
        """Wait until it serves: "" or why it does not; then it is ended."""
        waiting = {asyncio.ensure_future(self.ready.wait()), asyncio.ensure_future(self.gone.wait())}
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if self.gone.is_set():
            return f"it ended with {self.told_code()} before it served; its output above says why"
        if not self.ready.is_set():
            self.kill()
            await self.gone.wait()
            return f"it did not serve within {timeout:g} s"
        return ""

    def told_code(self) -> str:
        """How it ended, for a person."""
        code = self.code or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
