"""What tests of apps and plugins use: a running app, a plugin's conformance, a fake clock, a recorder, faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deia_hardening.testing.asgi import ASGIRecorder, http_scope, request, websocket_scope
from deia_hardening.testing.clock import FakeClock
from deia_hardening.testing.live import Running, running

if TYPE_CHECKING:
    from deia_hardening.testing.conformance import PluginConformance

__all__ = [
    "ASGIRecorder",
    "FakeClock",
    "PluginConformance",
    "Running",
    "http_scope",
    "request",
    "running",
    "websocket_scope",
]


def __getattr__(name: str) -> Any:
    if name == "PluginConformance":  # needs pytest, which a service does not have
        from deia_hardening.testing.conformance import PluginConformance

        return PluginConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
