"""What the app's own port answers: the probes, and more only where `control.on_app` says so.

One comparison of the path's beginning for every other request. What this port does not offer falls through to the
app, so no route of the app is shadowed but those that are answered here. No cookies are believed here: a script on
the app's pages shares its origin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable

import anyio

from deia_hardening.control.api import FIXED, PROBES, Api
from deia_hardening.control.forward import forward
from deia_hardening.control.http import Peer, Request, Response, Way, gather_headers, problem_response
from deia_hardening.control.settings import ControlSettings
from deia_hardening.control.socket import HomeSocket
from deia_hardening.plugin import Completion, Host
from deia_hardening.problem import Problem
from deia_hardening.routing import route_path
from deia_hardening.streams import until_left
from deia_hardening.types import ASGIApp, Receive, Scope, Send


class OnApp:
    """The layer around the app. Runs on the serving loop; the work is done on the background loop."""

    def __init__(self, app: ASGIApp, host: Host, api: Api, home: HomeSocket, settings: ControlSettings) -> None:
        self._app = app
        self._host = host
        self._api = api
        self._home = home
        self._settings = settings
        self._prefix = settings.prefix + "/"
        self._whole = settings.on_app != "probes"

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of our own around a request that is the app's: that saves half of this layer's 0.4 µs.
        if self._prefix not in scope["path"] or scope["type"] != "http":
            return self._app(scope, receive, send)
        path = self._own_path(scope)
        if path is None:
            return self._app(scope, receive, send)
        return self._answer(path, scope, receive, send)

    def _own_path(self, scope: Scope) -> str | None:
        """The path after the prefix when it is ours to answer, else None."""
        path = route_path(scope)
        if not path.startswith(self._prefix):
            return None
        rest = path[len(self._prefix) - 1 :]
        if rest in PROBES:
            return rest
        if not self._whole:
            return None
        if rest in FIXED:
            return rest
        offered = rest.count("/") == 2 and rest[1:].replace("/", ".") in self._api.operations_for(Way.APP)
        return rest if offered else None

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._body(scope, receive)
            client = scope.get("client")
            peer = Peer(Way.APP, str(client[0]) if client else "", secure=scope.get("scheme") == "https")
            query = scope.get("query_string", b"").decode("latin-1")
            request = Request(scope["method"], path, query, gather_headers(scope["headers"]), body, peer)
        except Problem as problem:
            response = problem_response(problem)
        else:
            if path in PROBES:
                response = await self._api.handle(request)  # touches no loop
            else:
                response = await self._host.runtime.run(self._dispatch, request)
        await self._reply(response, receive, send)

    async def _dispatch(self, request: Request) -> Response:
        """On the background loop: here when this worker owns the home's socket (or nobody does), else by its owner."""
        if not self._home.owned:
            forwarded = await forward(self._host, self._api, self._home, request)
            if forwarded is not None:
                return forwarded
        return await self._api.handle(request)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        pieces, size, limit = [], 0, self._settings.max_body
        with anyio.move_on_after(self._settings.read_timeout):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Problem(400, "the client left before its request was complete")
                piece = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise Problem(413, f"a body has at most {limit} here")
                pieces.append(piece)
                if not message.get("more_body"):
                    return b"".join(pieces)
        raise Problem(408, "the request did not come in time")

    async def _reply(self, response: Response, receive: Receive, send: Send) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        stream = response.stream
        if stream is None:
            await send({"type": "http.response.body", "body": response.body})
            return
        submit = self._host.runtime.submit
        pending: Completion[bytes | None] | None = None

        async def following() -> bytes | None:
            return await anext(stream, None)

        async def closing() -> None:
            if pending is not None:
                with contextlib.suppress(Exception):
                    await pending
            await stream.aclose()  # type: ignore[attr-defined]

        async def watch(scope: anyio.CancelScope) -> None:
            if await until_left(receive):
                scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch, group.cancel_scope)
                while True:
                    pending = submit(following)
                    piece = await pending
                    if piece is None:
                        break
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                group.cancel_scope.cancel()
        finally:
            submit(closing)  # not awaited: the stream may be silent for some seconds yet
