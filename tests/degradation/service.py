"""An app with a feature that DEGRADED turns off, and its settings: for the tests of the plugin."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from deia_hardening import feature
from deia_hardening.events import ModeChanged
from deia_hardening.plugin import Latch


def http_only(app):
    """An app that takes no part in the lifespan protocol."""

    async def wrapped(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    return wrapped


@http_only
async def hello(scope, receive, send):
    body = b"scaling on" if feature("scaling", default=True) else b"scaling off"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def changed(app):
    """Leave once the mode has changed within the block."""
    latch = Latch()
    subscription = app.core.events.subscribe(ModeChanged, lambda event: latch.set(), inline=True)
    yield
    with anyio.fail_after(30):
        await latch.wait()
    subscription.cancel()


def settings(**more):
    return {"home": ".deia", "degradation": {"disable_features": ["scaling"], **more}}
