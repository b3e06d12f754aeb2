"""From a request to an answer: probes, health, operations, sessions.

Everything that travels over the socket, the control plane's own address or the app's port comes through `Api.handle`
on the background loop. A refusal is a `Problem`; whatever else an operation raises becomes a 500 that shows a
reference and nothing of the inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import attrs
import msgspec

from deia_hardening.control import codec, console, openapi
from deia_hardening.control.auth import Authentication, Caller, require
from deia_hardening.control.http import SAFE_HEADERS, Request, Response, Way, json_response, problem_response
from deia_hardening.control.openapi import LONGEST_REASON
from deia_hardening.control.settings import ControlSettings
from deia_hardening.errors import NotEnabled, NotStarted, ReloadRefused, SettingsError
from deia_hardening.ids import uuid7
from deia_hardening.operations import Call, Operation, Progress, Role
from deia_hardening.plugin import Health, Host, Mode
from deia_hardening.problem import Problem
from deia_hardening.store import StaleRevision, StoreError
from deia_hardening.surface import Surface

logger = logging.getLogger("deia_hardening.control")

_LONGEST_REASON: Final = 500
_SSE: Final = "text/event-stream"
PROBES: Final = ("/livez", "/readyz")
FIXED: Final = ("/health", "/metrics", "/operations", "/openapi.json")


class Api:
    """The control plane of one hardened app. `handle` runs on the background loop."""

    def __init__(self, host: Host, authentication: Authentication, settings: Callable[[], ControlSettings]) -> None:
        self._host = host
        self._authentication = authentication
        self._settings = settings
        self._fixed = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/operations": self._listed,
            "/openapi.json": self._openapi,
        }
        self._running: set[asyncio.Task[None]] = set()

    @property
    def surface(self) -> Surface:
        return self._host.services.get(Surface)

    @property
    def prefix(self) -> str:
        return self._settings().prefix

    @property
    def app_name(self) -> str:
        """The app's name, as `deia-app` names it: plain ASCII."""
        name = self.surface.status().name
        return "".join(each if each.isascii() and each.isprintable() else "?" for each in name)[:64] or "app"

    async def authenticate(self, request: Request) -> Caller:
        """The caller of a request. Raises Problem."""
        return await self._authentication.caller(request)

    async def handle(self, request: Request) -> Response:
        """Answer one request; never raises."""
        try:
            response = await self._route(request)
        except Problem as problem:
            response = problem_response(problem)
        except Exception as error:
            response = problem_response(explained(error))
        if request.method == "HEAD" and response.stream is None:
            response = attrs.evolve(response, body=b"")
        return response

    async def _route(self, request: Request) -> Response:
        path = request.path
        if path in PROBES:
            allow(request, "GET", "HEAD")
            return self._probe(path)
        if path in console.PATHS and request.peer.way is Way.LISTENER and self._settings().console:
            allow(request, "GET", "HEAD")
            return await self._host.blocking(console.page, path)
        caller = await self._authentication.caller(request)
        if path == "/session":
            return await self._session(request, caller)
        fixed = self._fixed.get(path)
        if fixed is not None:
            allow(request, "GET", "HEAD")
            require(caller, Role.VIEWER)
            return fixed(request)
        return await self._operation(request, caller)

    # ---- probes and health

    def _probe(self, path: str) -> Response:
        if path == "/livez":
            return json_response(b'{"status":"alive"}')
        surface = self.surface
        if not surface.ready():
            raise Problem(503, "the service is not ready: starting, stopping, or nothing can serve", retry_after=1)
        if not self._settings().maintenance_ready and self._host.page.state().get("mode") == Mode.MAINTENANCE.value:
            raise Problem(503, "the service is in MAINTENANCE", retry_after=5)
        return json_response(b'{"status":"ready"}')

    def _health(self, request: Request) -> Response:
        found = self.surface.health()
        worst = max((health.state for health in found.values()), key=_SEVERITY.__getitem__)
        body = {
            "state": worst.value,
            "plugins": {name: _shown(health) for name, health in found.items()},
            "store": list(self._host.store.health()),
        }
        return json_response(codec.encode(body))

    def _metrics(self, request: Request) -> Response:
        from deia_hardening.metrics.prometheus import CONTENT_TYPE, render

        body = render({self.app_name: self._host.metrics})
        return Response(200, [("content-type", CONTENT_TYPE), ("content-length", str(len(body))), *SAFE_HEADERS], body)

    # ---- what there is

    def operations_for(self, way: Way) -> dict[str, Operation]:
        """The operations that can be called by this way in."""
        on_app = self._settings().on_app
        found = self.surface.operations()
        if way is not Way.SOCKET:
            found = {name: operation for name, operation in found.items() if not operation.local}
        if way is Way.APP and on_app != "full":
            found = {name: operation for name, operation in found.items() if not operation.changes and on_app == "read"}
        return found

    def _listed(self, request: Request) -> Response:
        operations = [openapi.describe(one) for _, one in sorted(self.operations_for(request.peer.way).items())]
        return json_response(codec.encode({"operations": operations}))

    def _openapi(self, request: Request) -> Response:
        document = openapi.document(
            self.operations_for(request.peer.way), self._settings().prefix, sessions=request.peer.way is Way.LISTENER
        )
        return json_response(msgspec.json.encode(document))

    # ---- sessions

    async def _session(self, request: Request, caller: Caller) -> Response:
        if request.peer.way is not Way.LISTENER:
            raise Problem(404, "sessions exist only at the control plane's own address")
        allow(request, "POST", "DELETE")
        sessions = self._authentication.sessions
        if request.method == "DELETE":
            cookie = await sessions.close(request.headers.get("cookie", ""))
        elif caller.session:
            raise Problem(409, "there is a session already")
        else:
            cookie = await sessions.open(caller)
        return json_response(b"{}", headers=[("set-cookie", cookie)])

    # ---- operations

    async def _operation(self, request: Request, caller: Caller) -> Response:
        name = request.path[1:].replace("/", ".")
        operation = self.operations_for(request.peer.way).get(name) if request.path.count("/") == 2 else None
        if operation is None:
            raise Problem(404, "there is no such operation here; its plugin may be off, or this port may not offer it")
        if operation.changes:
            allow(request, "POST")
        else:
            allow(request, "GET", "HEAD")
        require(caller, operation.role)
        if operation.changes:
            if request.query:
                raise Problem(400, "what changes something takes its input in the body, not in the address")
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if request.body and kind != "application/json":
                raise Problem(415, "the body must be JSON: send 'content-type: application/json'")
            value = codec.read_body(operation.input, request.body)
        else:
            value = codec.read_query(operation.input, request.query)
        stepwise = _SSE in request.headers.get("accept", "") and request.method != "HEAD"
        call = Call(
            actor=caller.actor,
            reason=_reason(request.headers),
            local=caller.local,
            if_revision=_revision(request.headers, operation),
            stepwise=stepwise,
        )
        steps = self.surface.invoke(operation.name, value, call)
        if stepwise:
            return Response(200, [("content-type", _SSE), *_STREAM_HEADERS], stream=self._events(operation, steps))
        output = None
        async for step in steps:
            output = step
        headers = []
        revision = getattr(output, "revision", None)
        if isinstance(revision, int) and not isinstance(revision, bool):
            headers.append(("etag", f'"{revision}"'))
            if not operation.changes and request.headers.get("if-none-match") == f'"{revision}"':
                return Response(304, headers)
        return json_response(codec.encode(output), headers=headers)

    async def _events(self, operation: Operation, steps: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """The steps as server-sent events. When the client leaves, what changes something goes on to its end."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)
        gone = False

        async def say(event: str, data: bytes) -> None:
            if not gone:
                await queue.put(b"event: %s\ndata: %s\n\n" % (event.encode(), data))

        async def run() -> None:
            last: Any = None
            try:
                async for step in steps:
                    if isinstance(step, Progress):
                        await say("progress", codec.encode(step))
                    else:
                        last = step
                await say("result", codec.encode(last))
            except Exception as error:
                await say("problem", (error if isinstance(error, Problem) else explained(error)).body())
            finally:
                if not gone:
                    await queue.put(None)

        task = asyncio.get_running_loop().create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        pause = self._settings().keep_alive
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(queue.get(), pause)
                except TimeoutError:
                    piece = b": still at it\n\n"
                if piece is None:
                    return
                yield piece
        finally:
            gone = True
            while not queue.empty():  # whoever waits to say something goes on
                queue.get_nowait()
            if not operation.changes and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


_SEVERITY: Final = {"ok": 0, "degraded": 1, "failed": 2}
_STREAM_HEADERS: Final = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))


def _shown(health: Health) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": health.state.value}
    if health.detail:
        shown["detail"] = health.detail
    if health.since:
        shown["since"] = health.since
    if health.figures:
        shown["figures"] = health.figures
    return shown


def allow(request: Request, *methods: str) -> None:
    """Raise Problem 405 for another method."""
    if request.method not in methods:
        listed = ", ".join(methods)
        raise Problem(405, f"{request.method[:16]} is not how this is called; use {listed}", headers={"allow": listed})


def explained(error: Exception) -> Problem:
    """The refusal for what an operation raised. What nobody foresaw is logged, and shown by reference only."""
    if isinstance(error, SettingsError):
        problems = [str(problem) for problem in error.problems[:20]]
        return Problem(422, f"the settings were refused: {problems[0]}", extensions={"problems": problems})
    if isinstance(error, (ReloadRefused, NotEnabled)):
        return Problem(409, str(error))
    if isinstance(error, StaleRevision):
        return Problem(412, str(error))
    if isinstance(error, (StoreError, NotStarted)):
        return Problem(503, str(error), retry_after=1)
    reference = uuid7()
    logger.error("an operation failed (%s)", reference, exc_info=error)
    return Problem(500, f"the operation failed; the service's log has the cause under {reference}")


def _reason(headers: Mapping[str, str]) -> str:
    given = headers.get("deia-reason", "")
    if len(given) > LONGEST_REASON or not (given.isascii() and given.isprintable()):
        raise Problem(
            400, f"Deia-Reason takes percent-encoded UTF-8, at most {LONGEST_REASON} characters; nothing was done"
        )
    text = unquote(given, errors="replace")
    return "".join(character if character.isprintable() else " " for character in text[:_LONGEST_REASON])


def _revision(headers: Mapping[str, str], operation: Operation) -> int | None:
    text = headers.get("if-match", "*").strip()
    if text == "*":
        return None
    if not operation.conditional:
        raise Problem(400, f"{operation.name} takes no If-Match; nothing was done")
    inner = text.removeprefix('"').removesuffix('"')
    if not inner.isascii() or not inner.isdigit() or len(inner) > 18:
        raise Problem(400, 'If-Match takes one revision as the answer\'s ETag gave it: "17"; nothing was done')
    return int(inner)
