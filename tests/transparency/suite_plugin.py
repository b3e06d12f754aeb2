"""A pytest plugin for other people's suites: every app that a test client or a server is given is wrapped first.

Those are Starlette's test client, httpx's ASGI transport, uvicorn's `Config`, hypercorn's wrapper, asgiref's
`ApplicationCommunicator` and asgi-lifespan's `LifespanManager`. `DEIA_SUITE_MODE=baseline` wraps an app in a do-nothing
ASGI callable, `hardened` hardens it with the plugins that `DEIA_SUITE_PLUGINS` names (all five by default).
`DEIA_SUITE_BACKEND=trio` runs Starlette's client on trio where a test names no backend. `DEIA_SUITE_STARTED=1` starts
an app at once where no lifespan may come (httpx's transport, asgiref): for tests that count blocked tasks or give an
answer 10 ms, since a first request with no lifespan waits for the start.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import starlette.testclient

MODE = os.environ.get("DEIA_SUITE_MODE", "hardened")
PLUGINS = [
    name
    for name in os.environ.get("DEIA_SUITE_PLUGINS", "audit,config,degradation,migration,recovery").split(",")
    if name
]

STARTED = bool(os.environ.get("DEIA_SUITE_STARTED"))
BACKEND = os.environ.get("DEIA_SUITE_BACKEND", "")

_original = starlette.testclient.TestClient.__init__
_home = Path(tempfile.mkdtemp(prefix="deia-suite-"))


class DoNothing:
    """The control: an ASGI wrapper that only passes on."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def _wrap(app: Any) -> Any:
    if MODE == "baseline":
        return DoNothing(app)
    from deia_hardening import harden
    from deia_hardening.app import find_core

    if find_core(app) is not None:  # a client is given one app twice: it is hardened already
        return app
    return harden(app, {"home": str(_home), **{name: {} for name in PLUGINS}})


def _init(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
    # An app of the older, two-step ASGI style is wrapped by the client itself and is none of ours.
    if starlette.testclient._is_asgi3(app):
        app = _wrap(app)
    if BACKEND:
        kwargs.setdefault("backend", BACKEND)
    _original(self, app, *args, **kwargs)


def _start(app: Any) -> None:
    if not STARTED or MODE == "baseline":
        return
    from deia_hardening.app import find_core
    from deia_hardening.runtime import runtime

    core = find_core(app)
    assert core is not None
    try:
        runtime().submit(core.ensure).result(60)
    except Exception as error:
        if type(error).__name__ != "BlockingError":  # made within a handler: it starts with its first request, then
            raise


def _wrap_first_argument(module_name: str, class_name: str, *, start: bool = False) -> None:
    """Wrap the app that a class of a server or a test kit is made with; other styles of app are left alone."""
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except ImportError:
        return
    original = kind.__init__

    def init(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        if callable(app) and not kwargs.get("factory") and starlette.testclient._is_asgi3(app):
            app = _wrap(app)
            if start:
                _start(app)
        original(self, app, *args, **kwargs)

    kind.__init__ = init


starlette.testclient.TestClient.__init__ = _init  # type: ignore[method-assign]
for _name in ("httpx", "httpx2"):
    _wrap_first_argument(_name, "ASGITransport", start=True)
_wrap_first_argument("uvicorn", "Config")
_wrap_first_argument("asgiref.testing", "ApplicationCommunicator", start=True)
_wrap_first_argument("asgi_lifespan", "LifespanManager")
_wrap_first_argument("hypercorn.app_wrappers", "ASGIWrapper")
