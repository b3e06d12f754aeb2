"""What an exception of a client library says of the call: its status and headers, and whether anything was sent.

The libraries (httpx, aiohttp, openai, anthropic, urllib, Google's) are known by the names they give things, never
imported. What is not known for certain counts as sent.
"""

from __future__ import annotations

import socket
from typing import Any

from deia_hardening.upstream import Outcome, UpstreamError

_DEPTH = 8
_CONNECTING = frozenset(
    {
        ("httpx", "ConnectError"), ("httpx", "ConnectTimeout"), ("httpx", "PoolTimeout"), ("httpcore", "ConnectError"),
        ("httpcore", "ConnectTimeout"), ("httpcore", "PoolTimeout"), ("aiohttp", "ClientConnectorError"),
        ("aiohttp", "ConnectionTimeoutError"),
    }
)  # fmt: skip


def not_sent(error: BaseException | None) -> bool:
    """Whether the call provably never reached the other side: there was no connection to send it on."""
    for _ in range(_DEPTH):
        error = _alone(error)
        if error is None:
            return False
        if isinstance(error, UpstreamError):
            return error.outcome is Outcome.NOT_SENT
        if isinstance(error, (ConnectionRefusedError, socket.gaierror)):
            return True
        if any((kind.__module__.partition(".")[0], kind.__name__) in _CONNECTING for kind in type(error).__mro__):
            return True
        error = error.__cause__  # what was raised `from` it; a mere context may be an earlier, unrelated attempt
    return False


def _alone(error: BaseException | None) -> BaseException | None:
    """What a task group's exception group holds, where that is a single exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def status_of(error: BaseException) -> tuple[int | None, list[tuple[bytes, bytes]]]:
    """The status and headers that the exception carries; None and nothing where it has none."""
    error = _alone(error) or error
    response: Any = getattr(error, "response", None)
    found = [getattr(error, name, None) for name in ("status_code", "status", "code")]
    found.append(getattr(response, "status_code", None))
    status = next((one for one in found if isinstance(one, int) and 100 <= one < 600), None)
    headers: Any = getattr(error, "headers", None) or getattr(response, "headers", None)
    pairs = []
    if headers is not None:
        try:
            pairs = [(str(k).lower().encode("latin-1"), str(v).encode("latin-1")) for k, v in dict(headers).items()]
        except (TypeError, ValueError):
            pairs = []
    return (None if status is None else int(status)), pairs
