"""Where session ids are read and learned: which part of a request carries one, which answer issues one.

A session that lives in a version's memory must go on there, whatever the weight. Ids that a version issues are learned
from its answers; ids that a client makes up are bound to the version that their first request went to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import attrs

from deia_hardening.plugin import RequestContext, RoutePattern, Scope, route_path
from deia_migration.keys import MOST_FIELDS, Found, cookie, load, query

Reader = Callable[[Scope, RequestContext, Found], "str | bytes | None"]
HeaderLearner = Callable[["list[tuple[bytes, bytes]]"], "bytes | None"]
BodyLearner = Callable[[bytes], "str | None"]

_OPEN_PACKET = re.compile(rb'0\{"sid":"([A-Za-z0-9_\-]{1,128})"')
_ENDPOINT = re.compile(rb"event:\s*endpoint\s*\r?\ndata:\s*(\S{1,1024})")


@attrs.frozen(kw_only=True)
class SessionSource:
    """One kind of session.

    Attributes:
        tag: keeps ids of different sources apart.
        read: the id that a request carries.
        headers: header fields that `read` needs.
        issued: whether the version issues the ids (else the client makes them up).
        answers: header fields of an answer that `from_headers` looks at.
        from_headers: finds a new id in an answer's headers.
        from_body: finds a new id in an answer's first body bytes, or in a WebSocket's first message.
        prefix: only answers on paths below this are looked into for `from_body`.
        ends: whether a DELETE with the id ends the session.
        json: the member of JSON bodies that holds the id; the layer reads it ahead.
    """

    tag: bytes
    read: Reader
    headers: frozenset[bytes] = frozenset()
    issued: bool = True
    answers: frozenset[bytes] = frozenset()
    from_headers: HeaderLearner | None = None
    from_body: BodyLearner | None = None
    prefix: str = ""
    ends: bool = False
    json: str = ""


JSON = b":json"
"""Where the id that was read from a body stands among the header fields: no field can have this name."""


def _from_json(scope: Scope, context: RequestContext, found: Found) -> bytes | None:
    return found.get(JSON)


def problem_of_session(text: str) -> str | None:
    """Why `text` is no source of sessions, or None."""
    kind, _, rest = text.partition(":")
    if kind == "client":
        inner, _, name = rest.partition(":")
        if inner == "path":
            return problem_of_session(rest)
        known = inner in ("header", "query", "cookie", "json") and name
        return None if known else f"{text!r}: write client:header:NAME, or query, cookie, json, path:/x/{{NAME}}"
    if kind in ("header", "cookie", "query", "sse") and rest:
        return None
    if kind == "socketio" and rest.startswith("/"):
        return None
    if kind == "path":
        return None if rest.startswith("/") and rest.count("{") == 1 else f"{text!r}: write path:/rooms/{{id}}"
    if "." in kind and rest:
        return None
    return f"{text!r} is no source of sessions; write header:NAME, cookie:NAME, path:/rooms/{{id}}, socketio:/PREFIX/"


def compile_session(text: str) -> SessionSource:
    """A source as written in the settings. Raises ImportError for a resolver that is not there."""
    kind, _, rest = text.partition(":")
    tag = text.encode() + b"\x00"
    if kind == "client":
        shown = rest.partition(":")[2]
        if "{" in shown:
            shown = shown.partition("{")[2].partition("}")[0].partition(":")[0]
        # One session may show its id in a query, a path and a body: the name makes it the same one.
        tag = b"client:" + shown.encode() + b"\x00"
        if rest.startswith("json:"):
            return SessionSource(tag=tag, read=_from_json, issued=False, json=shown)
        inner = compile_session(rest)
        return attrs.evolve(inner, tag=tag, issued=False, answers=frozenset(), from_headers=None, from_body=None)
    if kind == "header":
        name = rest.lower().encode("latin-1")
        return SessionSource(
            tag=tag,
            read=lambda scope, context, found: found.get(name),
            headers=frozenset({name}),
            answers=frozenset({name}),
            from_headers=lambda headers: next((value for key, value in headers if key.lower() == name), None),
            ends=True,
        )
    if kind == "cookie":
        wanted = rest.encode("latin-1") + b"="
        return SessionSource(
            tag=tag,
            read=lambda scope, context, found: cookie(found.get(b"cookie"), wanted),
            headers=frozenset({b"cookie"}),
            answers=frozenset({b"set-cookie"}),
            from_headers=lambda headers: _set_cookie(headers, wanted),
        )
    if kind == "query":
        return SessionSource(tag=tag, read=lambda scope, context, found: query(scope, rest), issued=False)
    if kind == "sse":
        return SessionSource(
            tag=tag,
            read=lambda scope, context, found: query(scope, rest),
            from_body=lambda body: _endpoint(body, rest),
        )
    if kind == "socketio":

        def read_sid(scope: Scope, context: RequestContext, found: Found) -> str | None:
            return query(scope, "sid") if route_path(scope).startswith(rest) else None

        return SessionSource(tag=tag, read=read_sid, from_body=_open_packet, prefix=rest)
    if kind == "path":
        return SessionSource(tag=tag, read=_path_reader(rest), issued=False)
    resolver = load(text)

    def resolve(scope: Scope, context: RequestContext, found: Found) -> str | bytes | None:
        value = resolver(scope)
        return value if value is None or isinstance(value, (str, bytes)) else str(value)

    return SessionSource(tag=tag, read=resolve, issued=False)


def _set_cookie(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    for key, value in headers:
        if key.lower() == b"set-cookie" and value.lstrip().startswith(wanted):
            return value.lstrip()[len(wanted) :].partition(b";")[0].strip().strip(b'"') or None
    return None


def _open_packet(body: bytes) -> str | None:
    """The session id in an Engine.IO open packet (polling answer, or a WebSocket's first message)."""
    match = _OPEN_PACKET.search(body, 0, 256)
    return match[1].decode() if match else None


def _endpoint(body: bytes, name: str) -> str | None:
    """The session id in the `endpoint` event that opens an MCP server-sent-events stream."""
    match = _ENDPOINT.search(body, 0, 2048)
    if match is None:
        return None
    for key, value in parse_qsl(urlsplit(match[1].decode("latin-1")).query, max_num_fields=MOST_FIELDS):
        if key == name:
            return value
    return None


def _path_reader(pattern: str) -> Reader:
    parts = RoutePattern.parse(pattern).segments
    raw = pattern.rpartition(" ")[2][1:].split("/")
    place = next(index for index, part in enumerate(raw) if part.startswith("{"))

    def read(scope: Scope, context: RequestContext, found: Found) -> str | None:
        segments = route_path(scope)[1:].split("/")
        if len(segments) < len(parts) and parts[-1] != "**":
            return None
        for index, part in enumerate(parts):
            if part == "**":
                break
            if index >= len(segments) or (part != "*" and part != segments[index]):
                return None
        else:
            if len(segments) != len(parts):
                return None
        return segments[place] or None

    return read
