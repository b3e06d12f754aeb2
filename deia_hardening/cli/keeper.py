"""Who keeps the children's pipes while workers come and go: the supervisor of `deia-hardening run`.

See `deia_hardening/upstream/keeping.py`. A child that has ended is forgotten; at the end of the service all are let go,
waited for, and killed where they do not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
from typing import Any

import attrs

from deia_hardening.upstream.keeping import Kept, kept_from, receive, send


class Keeper:
    """Holds copies of the children's ends. On the supervisor's loop."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """`state` is what `state()` gave to the supervisor that this process was before."""
        self._lines: set[socket.socket] = set()
        self._kept: dict[int, Kept] = {}
        for number in (state or {}).get("lines", ()):
            self._attach(socket.socket(fileno=number))
        for one in (state or {}).get("kept", ()):
            self._keep(Kept(**one))

    def line(self) -> socket.socket:
        """A new worker's end of a line to this keeper; whoever asked for it closes it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._attach(ours)
        return theirs

    def state(self) -> dict[str, Any]:
        """What the supervisor hands to itself over its replacement; the descriptors become inheritable."""
        for line in self._lines:
            line.set_inheritable(True)
        for one in self._kept.values():
            for end in one.ends:
                os.set_inheritable(end, True)
        return {"lines": [line.fileno() for line in self._lines], "kept": [*map(attrs.asdict, self._kept.values())]}

    def _attach(self, line: socket.socket) -> None:
        line.setblocking(False)
        line.set_inheritable(False)
        self._lines.add(line)
        asyncio.get_running_loop().add_reader(line, self._hear, line)

    def _hear(self, line: socket.socket) -> None:
        """Take everything that a worker has said."""
        while line in self._lines:
            try:
                message, ends = receive(line)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                message, ends = None, []
            if message is None:
                self._lines.discard(line)
                asyncio.get_running_loop().remove_reader(line)
                line.close()
            elif message.get("t") == "take":
                self._give(line, message)
            elif (kept := kept_from(message, ends)) is not None:
                self._keep(kept)

    def _keep(self, kept: Kept) -> None:
        for end in kept.ends:
            os.set_inheritable(end, False)
        self._forget(kept.pid)
        self._kept[kept.pid] = kept
        asyncio.get_running_loop().add_reader(kept.pidfd, self._forget, kept.pid)

    def _forget(self, pid: int) -> None:
        kept = self._kept.pop(pid, None)
        if kept is not None:
            asyncio.get_running_loop().remove_reader(kept.pidfd)
            kept.close()
            with contextlib.suppress(ChildProcessError):  # it is this process's own where that is process 1
                os.waitpid(pid, os.WNOHANG)

    def _give(self, line: socket.socket, asked: dict[str, Any]) -> None:
        for other in list(self._lines - {line}):  # what a worker said before it died comes first
            self._hear(other)
        number = asked.get("n")
        with contextlib.suppress(OSError):
            for one in self._kept.values():
                if one.home == asked.get("home"):
                    send(line, {"home": one.home, "name": one.name, "pid": one.pid, "n": number}, one.ends)
            send(line, {"t": "end", "n": number})

    async def end(self, patience: float) -> None:
        """Let all children go: each ends by itself when its pipe does, or is killed after `patience` seconds."""
        loop = asyncio.get_running_loop()
        for line in self._lines:
            loop.remove_reader(line)
            line.close()
        self._lines.clear()
        pidfds = []
        for one in self._kept.values():
            loop.remove_reader(one.pidfd)
            os.close(one.control)
            os.close(one.output)
            pidfds.append(one.pidfd)
        self._kept.clear()
        until = loop.time() + patience
        while (left := _alive(pidfds)) and loop.time() < until:
            await asyncio.sleep(0.02)
        for pidfd in left:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            os.close(pidfd)


def _alive(pidfds: list[int]) -> list[int]:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    gone = {number for number, _ in poll.poll(0)}
    return [pidfd for pidfd in pidfds if pidfd not in gone]
