"""`GET /api/audit/logs`: the trail over HTTP, for who holds a token of role viewer.

The one path is compared with every request; everything else falls through. Records come out as the bytes that were
hashed. A read is itself recorded, with who read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

import msgspec

from deia_audit.query.grammar import Query, QueryError, parse_query
from deia_audit.query.search import Page
from deia_hardening.context import SCOPE_KEY, RequestContext
from deia_hardening.plugin import ASGIApp, Authenticator, Host, Problem, Receive, Role, Scope, Send, route_path

_MOST_FIELDS = 64
"""Fields of a query string: every filter and then some; more is an attack on the parser."""

RunQuery = Callable[[Query], Awaitable[Page]]


class LogsEndpoint:
    """Answers the one route; runs on the serving loop, the search runs on a core-owned thread."""

    def __init__(self, app: ASGIApp, host: Host, run: RunQuery, path: str, most: int) -> None:
        self.app = app
        self._host = host
        self._run = run
        self._path = path
        self._most = most

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of our own around a request that is the app's.
        if scope["type"] != "http" or route_path(scope) != self._path:
            return self.app(scope, receive, send)
        return self._answer(scope, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        context: RequestContext = scope[SCOPE_KEY]
        context._route = self._path
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise Problem(405, "The trail can only be read here: use GET.", headers={"Allow": "GET, HEAD"})
            authenticator: Authenticator | None = self._host.services.get(Authenticator)
            if authenticator is None:
                raise Problem(503, "The control plane, which checks tokens, is not running.", retry_after=5)
            context.actor = await authenticator.authenticate(scope, Role.VIEWER)
            query = self._parse(scope)
            body = render(await self._run(query))
        except QueryError as error:
            problem = Problem(400, f"{error.field}: {error}", extensions={"field": error.field})
            await problem.send(send)
            return
        except Problem as problem:
            await problem.send(send)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _parse(self, scope: Scope) -> Query:
        raw = scope.get("query_string", b"")
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise QueryError(
                "query", f"the query string can't be read: at most {_MOST_FIELDS} fields of UTF-8 text"
            ) from None
        return parse_query(pairs, most=self._most, now_ns=self._host.clock.wall_ns())


def render(page: Page) -> bytes:
    """Return a page as JSON; each record stands in it byte for byte, beside its proof where one was asked for."""
    if page.proofs:
        records = [
            b'{"line":%b,"proof":%b}' % (msgspec.json.encode(row.line.decode()), msgspec.json.encode(row.proof))
            for row in page.rows
        ]
    else:
        records = [row.line for row in page.rows]
    parts = [b'"records":[%b],"size":%d' % (b",".join(records), page.size)]
    if page.next:
        parts.append(b'"next":%b' % msgspec.json.encode(page.next))
    if page.count is not None:
        parts.append(b'"count":%d' % page.count)
    if page.damaged:
        parts.append(b'"damaged":%b' % msgspec.json.encode(page.damaged))
    return b"{%b}" % b",".join(parts)
