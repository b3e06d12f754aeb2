"""`harden()`: the entry of every request, and the lifespan around the app's own.

A Starlette (or FastAPI) instance is wrapped in place, around the whole of what `build_middleware_stack` makes; any
other ASGI callable becomes a `Hardened`. With nothing wrong, a client can't tell that the app is wrapped. The app
also serves with no lifespan at all, and across several event loops: the first request starts what has not been
started, off the serving loop.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from time import monotonic as _monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from deia_hardening import signals
from deia_hardening.access import find_core
from deia_hardening.context import SCOPE_KEY, RequestContext, context_variable
from deia_hardening.errors import HardeningError
from deia_hardening.lifecycle import ROLE_VARIABLE, Core
from deia_hardening.plan import Source
from deia_hardening.problem import Problem
from deia_hardening.routing import route_path
from deia_hardening.turns import turns
from deia_hardening.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from deia_hardening.upstream.inner import Link

A = TypeVar("A")
Config = str | os.PathLike[str] | Mapping[str, Any]

logger = logging.getLogger("deia_hardening")
_set = context_variable.set
_reset = context_variable.reset


class Entry:
    """The outermost ASGI callable of a hardened app: context, chain, lifespan.

    `app` is what it wraps, as in Starlette's middleware: who looks for a layer in a stack walks that attribute
    (FastAPI's own telemetry does, and traces twice what it does not find to be traced).
    """

    def __init__(self, core: Core, app: ASGIApp) -> None:
        self.core = core
        self.app = app
        core.attach(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope.get("type")  # a scope without one is no ASGI: the app says so, not this layer
        if kind != "http" and kind != "websocket":
            if kind == "lifespan":
                await self._lifespan(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        core = self.core
        if not core.ready and not await self._started(scope, send):
            return
        revision = core.revision
        context = RequestContext(
            receive, send, scope=scope, revision=revision, received=_monotonic(), headers=scope.get("headers") or ()
        )
        parent = scope.get(SCOPE_KEY)
        if parent is not None:
            context.inherit(parent)
        scope[SCOPE_KEY] = context
        token = _set(context)
        try:
            identify = core.identify
            if identify is not None:
                identify(context)
            await revision.chain(scope, context.receive, context.send)
        except BaseException as error:
            context.error = error
            if isinstance(error, OSError):
                context.refused()
            for failed in revision.failed:
                failed(context)
            raise
        finally:
            if not context.ended:
                context.end()
            returners = context._returners
            if returners is not None:
                context._returners = None  # no cycle is left behind, so the request's revision can be let go
                for callback in returners:
                    callback()
            context.returned = True
            if context.ended >= turns.due:
                turns.give(context.ended)
            if parent is None:
                scope.pop(SCOPE_KEY, None)  # context and scope hold each other: no work for the collector
            else:
                scope[SCOPE_KEY] = parent
            try:
                _reset(token)
            except ValueError:  # the coroutine is closed from another context: nothing to restore there
                pass

    async def _started(self, scope: Scope, send: Send) -> bool:
        """Start what has not been started; False when that failed and the request was refused."""
        try:
            await self.core.ensure()
        except Exception as error:
            if scope["type"] == "http" and route_path(scope) == self.core.livez:
                await _alive(send)  # the process lives, whatever failed to start: no reason to end it
                return False
            if not isinstance(error, HardeningError):
                logger.error("the start failed", exc_info=error)
            problem = Problem(
                503,
                "The service could not start and tries again; its log says why.",
                retry_after=max(1.0, self.core.retry_after()),
            )
            if self.core.start_failure_is_new(error):
                logger.error("the hardened app could not start: %s", error)
            await problem.send(send, websocket=scope["type"] == "websocket")
            return False
        return True

    # -- lifespan -------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def body() -> None:
            signals.install(self.core, self.core.serving.schedule)
            try:
                await _Lifespan(self.core, self.app, scope, receive, send).run()
            finally:
                signals.remove(self.core)

        await self.core.serving.hold(body)


async def _alive(send: Send) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"6"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"alive\n"})


class _Lifespan:
    """One run of the lifespan protocol: plugins first, then the app's own, and back."""

    def __init__(self, core: Core, inner: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.core = core
        self.inner = inner
        self.scope = scope
        self._receive = receive
        self._send = send
        self._open = False
        self._startup_seen = False
        self._answered = False
        self._shutdown_seen = False

    async def run(self) -> None:
        try:
            await self.core.open_lifespan()  # nothing is received before the app asks: an app that raises at once may
        except Exception as error:
            await self._receive()
            await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        self._open = True
        try:
            try:
                await self.inner(self.scope, self.receive, self.send)
            except Exception:
                if not self._answered:  # no lifespan in this app: its plugins stay up until the process goes
                    self._open = False
                    self.core.leave_lifespan()
                raise
            if not self._answered:
                await self._stand_in()
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def receive(self) -> Message:
        message = await self._receive()
        self._startup_seen = True
        if message["type"] == "lifespan.shutdown":
            self._shutdown_seen = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if not kind.startswith("lifespan."):  # an app that takes every scope for a request: the server tells it
            await self._send(message)
            return
        self._answered = True
        if kind != "lifespan.startup.complete":  # startup.failed or a shutdown: the app is through
            with anyio.CancelScope(shield=True):
                await self._close()  # before the server hears it: some end the process at that message
        await self._send(message)

    async def _stand_in(self) -> None:
        """The app took no part in the protocol: keep the plugins up until the server shuts down."""
        if not self._startup_seen:
            await self._receive()
        await self._send({"type": "lifespan.startup.complete"})
        while not self._shutdown_seen:
            message = await self._receive()
            self._shutdown_seen = message["type"] == "lifespan.shutdown"
        await self._close()
        await self._send({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        if self._open:
            self._open = False
            await self.core.close_lifespan()


class Hardened:
    """A hardened ASGI callable that is no Starlette instance.

    Attributes are read from, set on and deleted from the wrapped app; dunder methods don't forward. It is also a
    middleware class: `app.add_middleware(Hardened, config=".deia/config")` hardens what is inside of that point.
    """

    __slots__ = ("__weakref__", "_deia_app", "_deia_entry")
    _deia_app: Any
    _deia_entry: Entry

    def __init__(
        self,
        app: ASGIApp,
        config: Config = ".deia/config",
        *,
        app_settings: type | None = None,
        _link: Link | None = None,
    ) -> None:
        _refuse_twice(app)
        object.__setattr__(self, "_deia_app", app)
        core = Core(Source(config, app_settings), app, _name(app), _link)
        object.__setattr__(self, "_deia_entry", Entry(core, app))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._deia_entry(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return getattr(object.__getattribute__(self, "_deia_app"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._deia_app, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._deia_app, name)

    def __repr__(self) -> str:
        return f"<Hardened {self._deia_app!r}>"

    def __copy__(self) -> Hardened:
        core = self._deia_entry.core
        return Hardened(copy.copy(self._deia_app), core.source.config, app_settings=core.source.app_settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hardened:
        core = self._deia_entry.core
        app = copy.deepcopy(self._deia_app, memo)
        return Hardened(app, core.source.config, app_settings=core.source.app_settings)

    def __reduce__(self) -> tuple[Any, ...]:
        core = self._deia_entry.core  # a server that spawns its workers pickles an app that is a module's function
        return _hardened, (self._deia_app, core.source.config, core.source.app_settings)


def _hardened(app: ASGIApp, config: Config, app_settings: type | None) -> Hardened:
    return Hardened(app, config, app_settings=app_settings)


class _BuildStack:
    """What stands in for an app's `build_middleware_stack`: it builds the app's own stack and wraps it whole.

    `copy.copy(app)` shares it with the original, as it shares the router. (`copy.deepcopy` of a Starlette instance
    fails in Starlette itself.)
    """

    def __init__(self, app: Any, core: Core, build: Any) -> None:
        self.app = app
        self._deia_core = core
        self.build = build

    def __call__(self) -> ASGIApp:
        stack: ASGIApp = self.build()
        if self.app.__dict__.get("build_middleware_stack") is self or not hasattr(stack, "app"):
            return Entry(self._deia_core, stack)
        # Somebody put a builder around this one after `harden()`, and may take the stack apart: OpenTelemetry's
        # instrumentation insists on Starlette's error middleware and builds it anew. So it gets that, with the chain
        # inside, and the chain moves outside again when the lifespan shows that the whole stack stands.
        stack.app = _Inside(self.app, self._deia_core, stack.app)
        return stack


class _Inside:
    """The chain within another's wrapper: for good where no lifespan comes, else until it comes."""

    def __init__(self, owner: Any, core: Core, app: ASGIApp) -> None:
        self.owner = owner
        self.app = app
        self.entry = Entry(core, app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = scope.get(SCOPE_KEY)
        if context is not None and context.revision.services is self.entry.core.services:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "lifespan" and not isinstance(self.owner.middleware_stack, Entry):
            self.owner.middleware_stack = Entry(self.entry.core, self.owner.middleware_stack)
        await self.entry(scope, receive, send)


def _refuse_twice(app: Any) -> None:
    if find_core(app) is not None:
        raise HardeningError(f"{_name(app)} is hardened already: call harden() once per app")


def _name(app: Any) -> str:
    title = getattr(app, "title", None)
    if isinstance(title, str) and title:
        return title
    return getattr(app, "__name__", None) or type(app).__name__


def harden(app: A, config: Config = ".deia/config", *, app_settings: type | None = None) -> A:
    """Put the plugins that `config` names around `app`; returns the app to serve.

    `config` is a folder, a file or a mapping; `app_settings` is the class (attrs, dataclass or pydantic) of the
    service's own settings, the section `app:`. A Starlette or FastAPI instance is wrapped in place and returned
    itself; for another ASGI callable a `Hardened` comes back. Reads and validates, opens and starts nothing. With
    `DEIA__ENABLED=false` in the environment the app comes back as it was. In a version process, or while a version is
    imported, it gives services and context and puts no second chain around the app.

    Raises SettingsError with every problem at once, HardeningError for an app that is hardened already.

    Example:
        app = FastAPI()
        app = harden(app, ".deia/config")
    """
    if not callable(app):
        raise HardeningError(f"harden() takes an ASGI application, not {type(app).__name__}")
    _refuse_twice(app)
    source = Source(config, app_settings)
    if not source.enabled():
        return app
    link = None
    if os.environ.get(ROLE_VARIABLE):  # a version under another front, which hardens it
        from deia_hardening.upstream.inner import is_inner
        from deia_hardening.upstream.inner import link as child_link

        link = child_link()
        if link is None and is_inner():
            return app
    build = getattr(app, "build_middleware_stack", None)
    if build is None or not hasattr(app, "middleware_stack"):
        return Hardened(app, config, app_settings=app_settings, _link=link)  # type: ignore[return-value]
    core = Core(source, app, _name(app), link)
    app.build_middleware_stack = _BuildStack(app, core, build)  # type: ignore[attr-defined]
    if app.middleware_stack is not None:  # built already: put the chain around what stands
        app.middleware_stack = Entry(core, app.middleware_stack)
    return app


__all__ = ["Entry", "Hardened", "find_core", "harden"]
