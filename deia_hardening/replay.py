"""Running a made-up request (stored work that is played back) in the running revision, with a context of its own."""

from __future__ import annotations

from deia_hardening.context import SCOPE_KEY, Exchange, RequestContext, context_variable
from deia_hardening.revision import Revision
from deia_hardening.types import ASGIApp, Receive, Scope, Send


async def replay(revision: Revision, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Call `app`, else the chain below CONTROL, as a request of `revision`. On the caller's loop."""
    exchange = Exchange(receive, send)
    scope[SCOPE_KEY] = exchange.context = RequestContext(scope, revision, exchange)
    token = context_variable.set(scope[SCOPE_KEY])
    try:
        await (app or revision.below_control)(scope, exchange.receive, exchange.send)
    finally:
        exchange.end()
        exchange.context = None
        context_variable.reset(token)
        scope.pop(SCOPE_KEY, None)
