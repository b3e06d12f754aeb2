"""Upstreams: whatever can answer a request, behind one ASGI interface with one outcome.

`open_upstream("http://127.0.0.1:9000")` gives an app to call; `inproc:`, `process:`, `http://`, `https://`
and `unix:` targets and plain ASGI callables all look alike from outside.
"""

from deia_hardening.upstream.base import (
    Aborted,
    FailedBeforeStart,
    NotSent,
    Outcome,
    Readiness,
    Upstream,
    UpstreamError,
    UpstreamStartError,
    outcome_of,
)
from deia_hardening.upstream.child_context import ChildContext, ChildState
from deia_hardening.upstream.opening import open_upstream
from deia_hardening.upstream.settings import ProcessSettings, UpstreamSettings, WebSocketSettings

__all__ = [
    "Aborted",
    "ChildContext",
    "ChildState",
    "FailedBeforeStart",
    "NotSent",
    "Outcome",
    "ProcessSettings",
    "Readiness",
    "Upstream",
    "UpstreamError",
    "UpstreamSettings",
    "UpstreamStartError",
    "WebSocketSettings",
    "open_upstream",
    "outcome_of",
]
