"""Which modes serve which routes, and what everybody else is told.

MAINTENANCE refuses with 503, `Retry-After` and the announced end; allow-listed routes and actors pass, and what the
app does not know stays its own 404 or 405.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deia_degradation.settings import DegradationSettings
from deia_hardening.plugin import Mode, Problem, RequestContext, Routes, Scope, Send

if TYPE_CHECKING:
    from deia_degradation.control import ModeControl


_REASON = 200
"""Characters of an operator's reason that clients are told."""


class ModeGate:
    """Says whether a request is served in a mode. Built once per revision."""

    def __init__(self, control: ModeControl, settings: DegradationSettings) -> None:
        self._control = control
        self._maintenance = settings.maintenance
        self._allowed: Routes[bool] = Routes((text, True) for text in settings.maintenance.allow)
        self._actors = frozenset(settings.maintenance.allow_actors)

    def refusal(self, scope: Scope, context: RequestContext, mode: Mode, modes: frozenset[Mode]) -> Problem | None:
        """The refusal of a request, or None when it is served. `modes` are those that serve its route."""
        if mode in modes:
            return None
        if mode is Mode.MAINTENANCE:
            if self._allowed.match(scope, False):
                return None
            if context.actor.auth and context.actor.id in self._actors:
                return None
        if not _known(scope):
            return None
        demand = self._control.state.demand
        now = context.received
        extensions: dict[str, Any] = {"mode": mode.value}
        if mode is Mode.MAINTENANCE:
            detail = self._maintenance.message
            retry = float(self._maintenance.retry_after)
            if demand is not None:
                if demand.reason:
                    extensions["reason"] = demand.reason[:_REASON]
                if math.isfinite(demand.until):
                    retry = max(1.0, demand.until - now)
                    end = self._control.host.clock.wall() + demand.until - now
                    extensions["ends"] = datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds")
            return Problem(503, detail, title="Under Maintenance", retry_after=retry, extensions=extensions)
        detail = f"This is not available while the service runs in mode {mode.value}; nothing was done."
        return Problem(503, detail, retry_after=30.0 * (1.0 + random.random()), extensions=extensions)


async def refuse(problem: Problem, scope: Scope, send: Send) -> None:
    """Answer with `problem`; a WebSocket handshake with its status too, where the server can do that."""
    if scope["type"] == "websocket" and "websocket.http.response" in (scope.get("extensions") or ()):
        body = problem.body()
        headers = problem.raw_headers(len(body))
        await send({"type": "websocket.http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
        return
    await problem.send(send, websocket=scope["type"] == "websocket")


def _known(scope: Scope) -> bool:
    """Whether the app has a route for this request: its own 404 and 405 are never masked.

    Asks the router of a Starlette or FastAPI app without side effects; other frameworks can't be asked, their
    routes count as known. Only refusals pay for this.
    """
    routes = getattr(getattr(scope.get("app"), "router", None), "routes", None)
    if routes is None:
        return True
    try:
        return _matches(routes, dict(scope))
    except Exception:  # a route class of its own kind: be careful and refuse
        return True


def _matches(routes: Any, scope: dict[str, Any]) -> bool:
    for route in routes:
        match, child = route.matches(scope)
        if getattr(match, "value", 0) != 2:  # Match.FULL
            continue
        below = getattr(route, "routes", None)
        if below and not hasattr(route, "endpoint"):
            if _matches(below, {**scope, **child}):
                return True
            continue
        return True
    return False
