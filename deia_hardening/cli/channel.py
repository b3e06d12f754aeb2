"""The pair of sockets between the supervisor of `run` and each worker: one JSON object a line, in both directions.

Up: `ready`, `roll`. Down: `retire` (stop accepting, drain, end), `leave` (as SIGTERM), `stop` (as Ctrl-C), `progress`
and `rolled` (what became of a `roll`). Its end tells each side that the other is gone.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
_MOST = 1 << 20
"""Bytes of an unfinished line after which the other side is taken to be mad, and the line dropped."""


class Lines:
    """Bytes as they come, as messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes; a line that is none is passed over."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MOST:
            self._rest = b""
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and isinstance(message.get("t"), str):
                    yield message


def tell(channel: socket.socket, kind: str, **fields: Any) -> bool:
    """Send one message; False when the other side is gone or takes nothing any more. Never blocks for long."""
    try:
        channel.sendall(json.dumps({"t": kind, **fields}).encode() + b"\n", socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True
