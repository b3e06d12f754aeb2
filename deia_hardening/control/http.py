"""Requests and responses of the control plane, apart from how they travel (socket, own address, the app's port)."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence

import attrs

from deia_hardening.problem import Problem


class Way(enum.Enum):
    """How a request came: through the local socket, the control plane's own address, or the app's port."""

    SOCKET = "socket"
    LISTENER = "listener"
    APP = "app"


@attrs.frozen
class Peer:
    """Who is on the other end of the connection, as the system says (`uid`, `pid`) or the network (`address`)."""

    way: Way
    address: str = ""
    uid: int = -1
    pid: int = 0
    secure: bool = False


@attrs.frozen
class Request:
    """One request. `path` begins after the prefix, with '/'; header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    peer: Peer


@attrs.frozen
class Response:
    """One response. A `stream` is sent as it comes; then `body` is empty and the length unknown."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


SAFE_HEADERS = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)
"""What every answer carries: nothing is cached, framed, sniffed or read by another origin."""

SINGLE = frozenset(
    ("host", "authorization", "content-length", "content-type", "origin", "cookie", "if-match", "transfer-encoding")
)
"""Headers of which a second one is refused: two readers could believe different ones."""


def gather_headers(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as a map. Raises Problem 400 when one that decides something comes twice."""
    found: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        if name in found:
            if name in SINGLE:
                raise Problem(400, f"the header '{name}' came twice; send it once")
            found[name] += f", {value}"
        else:
            found[name] = value
    return found


def problem_response(problem: Problem) -> Response:
    """A refusal as a response."""
    body = problem.body()
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in problem.raw_headers(len(body))]
    present = {name for name, _ in pairs}
    pairs.extend(pair for pair in SAFE_HEADERS if pair[0] not in present)
    return Response(problem.status, pairs, body)


def json_response(body: bytes, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """JSON as a response."""
    pairs = [("content-type", "application/json"), ("content-length", str(len(body))), *SAFE_HEADERS, *headers]
    return Response(status, pairs, body)
