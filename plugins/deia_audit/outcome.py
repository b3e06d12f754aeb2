"""What a record says of a call in one word: its operation by the method, its outcome and level by the status.

Pure.
"""

from __future__ import annotations

from typing import Final

OPS: Final = {
    "GET": "read", "HEAD": "read", "OPTIONS": "read", "TRACE": "read", "POST": "create", "PUT": "update",
    "PATCH": "update", "DELETE": "delete", "CONNECT": "other", "WEBSOCKET": "stream",
}  # fmt: skip
READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_REFUSALS: Final = frozenset({401, 403, 405, 407, 429, 503})


def outcome_of(status: int, *, error: bool) -> str:
    """Return success, refused or failure for an answer; 0 is an answer that never started."""
    if error or status == 0 or (status >= 500 and status != 503):
        return "failure"
    if status < 400:
        return "success"
    return "refused" if status in _REFUSALS else "failure"


def level_of(outcome: str, status: int = 0) -> str:
    """Return the level of a record: what the client got wrong is a warning, what the service did an error."""
    if outcome in ("success", "pending"):
        return "info"
    return "warning" if outcome == "refused" or 400 <= status < 500 else "error"


def trace_id(value: bytes) -> bytes | None:
    """Return the trace id of a W3C traceparent header, or None for anything else."""
    if len(value) < 55 or value[2:3] != b"-" or value[35:36] != b"-":
        return None
    trace = value[3:35]
    try:
        if not any(bytes.fromhex(trace.decode("ascii"))):
            return None
    except ValueError:
        return None
    return trace if trace == trace.lower() else None
