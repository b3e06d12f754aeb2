"""Running a made-up request (stored work that is played back) in the running revision, with a context of its own."""

from __future__ import annotations

from time import monotonic

from deia_hardening.context import SCOPE_KEY, RequestContext, context_variable
from deia_hardening.revision import Revision
from deia_hardening.types import ASGIApp, Receive, Scope, Send


async def replay(revision: Revision, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Call `app`, else the chain below CONTROL, as a request of `revision`. On the caller's loop."""
    context = RequestContext(
        receive, send, scope=scope, revision=revision, received=monotonic(), headers=scope.get("headers") or ()
    )
    scope[SCOPE_KEY] = context
    token = context_variable.set(context)
    try:
        await (app or revision.below_control)(scope, context.receive, context.send)
    finally:
        context.end()
        context.returned = True
        context_variable.reset(token)
        scope.pop(SCOPE_KEY, None)
