"""What a record says of a call in one word: its operation by the method, its outcome and level by the status.

Pure.
"""

from __future__ import annotations

import re
from typing import Final

OPS: Final = {
    "GET": "read", "HEAD": "read", "OPTIONS": "read", "TRACE": "read", "POST": "create", "PUT": "update",
    "PATCH": "update", "DELETE": "delete", "CONNECT": "other", "WEBSOCKET": "stream",
}  # fmt: skip
READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_traceparent: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").match
_TRACEPARENT: Final = 55
"""Bytes of a `traceparent` of version 0; later versions may say more behind a hyphen."""
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
    """Return the trace id of a `traceparent` header (W3C Trace Context section 3.2.2), None where it is not valid."""
    found = _traceparent(value)
    if found is None or (len(value) > _TRACEPARENT and (value[:2] == b"00" or value[_TRACEPARENT] != 0x2D)):
        return None
    return found[1]
