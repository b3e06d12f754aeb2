"""Which routes have answered with streams so far: while no stream's slot is free these are refused at the door.

An answer that turns out to be a stream can't be refused any more, so the bound on open streams holds only if the next
one is known before it is served. Learned from what was served, bounded, per process.
"""

from __future__ import annotations

import threading

from deia_degradation.admission.endpoints import segments
from deia_hardening.plugin import RequestContext, RoutePattern, Routes, Scope, route_path

_MOST = 256
"""Routes that are remembered; beyond, the oldest is forgotten."""


class StreamRoutes:
    """Learned by `note`, asked by `match`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], RoutePattern] = {}
        self._routes: Routes[bool] = Routes(())

    def note(self, context: RequestContext) -> None:
        """This request's answer is a stream. Called once its answer has begun, so its route is known."""
        scope = context.scope
        method = scope.get("method")
        if method is None:
            return  # a WebSocket is known for one at the door
        template = context.route
        key = (method, template or route_path(scope))
        if key in self._known:
            return
        path = key[1]
        parts = segments(path) if template else tuple(path[1:].split("/"))
        with self._lock:
            self._known[key] = RoutePattern(path, frozenset({method}), parts)
            while len(self._known) > _MOST:
                del self._known[next(iter(self._known))]
            self._routes = Routes((pattern, True) for pattern in self._known.values())

    def match(self, scope: Scope) -> bool:
        """Whether this request's route has answered with a stream before."""
        return bool(self._routes.match(scope, False))
