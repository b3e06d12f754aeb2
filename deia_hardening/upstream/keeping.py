"""A child's pipes kept by a process that outlives its supervisor, so that another worker can go on with the child.

A child ends when the last copy of its pipe is closed. Under `deia-hardening run` the supervisor of the workers holds a
copy of each child's ends (passed by SCM_RIGHTS); the worker that supervises next takes them over. With the whole
service they are closed, so no child outlives it. Where there is no keeper (another server, no pidfd) a child ends with
its supervisor.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

VARIABLE = "DEIA_RUN_KEEPER"
"""Carries the descriptor of a worker's line to the keeper."""

_PATIENCE = 5.0
_MOST = 65_536


@attrs.frozen
class Kept:
    """One child: whose it is, and this process's copies of its ends. The ends are descriptors."""

    home: str
    name: str
    pid: int
    control: int
    output: int
    pidfd: int

    @property
    def ends(self) -> tuple[int, int, int]:
        """The descriptors, in the order in which they travel."""
        return (self.control, self.output, self.pidfd)

    def close(self) -> None:
        """Give the descriptors back."""
        for one in self.ends:
            os.close(one)


def send(line: socket.socket, message: dict[str, Any], ends: Sequence[int] = ()) -> None:
    """Send one message, with descriptors. Raises OSError."""
    socket.send_fds(line, [json.dumps(message).encode()], list(ends), socket.MSG_NOSIGNAL)


def receive(line: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; None at the end, {} for one that makes no sense. Raises OSError."""
    data, ends, _, _ = socket.recv_fds(line, _MOST, 3, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    if not data:
        return None, ends
    try:
        message = json.loads(data)
    except ValueError:
        return {}, ends
    return message if isinstance(message, dict) else {}, ends


def kept_from(message: dict[str, Any], ends: list[int]) -> Kept | None:
    """The child that a message tells of, or None (the descriptors are closed then)."""
    try:
        if len(ends) == 3:
            return Kept(str(message["home"]), str(message["name"]), int(message["pid"]), *ends)
    except (KeyError, TypeError, ValueError):
        pass
    for one in ends:
        os.close(one)
    return None


class Line:
    """This worker's line to the keeper. Its methods block for a moment and raise nothing; any thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._number = 0
        self.ending = False
        """The whole service ends: children are ended, not handed over."""
        end.settimeout(_PATIENCE)

    def keep(self, home: Path, name: str, pid: int, ends: Sequence[int]) -> bool:
        """Have a child kept; False where nobody keeps it."""
        with self._lock:
            try:
                send(self._end, {"t": "keep", "home": str(home), "name": name, "pid": pid}, ends)
            except OSError:
                return False
        return True

    def take(self, home: Path) -> list[Kept] | None:
        """The children of a home that are kept; the keeper keeps them still. None: it did not answer in time."""
        found: list[Kept] = []
        with self._lock:
            self._number += 1
            try:
                send(self._end, {"t": "take", "home": str(home), "n": self._number})
                while True:
                    message, ends = receive(self._end)
                    if message is None:
                        break
                    one = kept_from(message, ends) if ends else None
                    if message.get("n") != self._number:  # of an answer that was given up
                        if one is not None:
                            one.close()
                    elif one is not None:
                        found.append(one)
                    elif message.get("t") == "end":
                        break
            except TimeoutError:
                for one in found:
                    one.close()
                return None
            except OSError:  # it is gone
                pass
        return found


_line: Line | None = None


def use(end: socket.socket) -> None:
    """From now on this process's children are kept by who is at the other end."""
    global _line
    _line = Line(end)


def line() -> Line | None:
    """This process's line to a keeper, or None."""
    return _line
