"""Route patterns of the settings, and the template of the route that the app chose.

Patterns are compiled once into a tree of path segments and matched against method and raw path (about half a
microsecond): running the app's own router early would cost 25 µs at 63 routes. The template of the route that
answered is read from the scope after the app's routing, so nothing is routed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs

from deia_hardening.types import Scope

T = TypeVar("T")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WEBSOCKET"})


@attrs.frozen
class RoutePattern:
    """`[METHOD[|METHOD…] ]/path`, with `{name}` or `*` for one segment and a last `**` for any rest.

    Without a method it matches every method and WebSockets; `WEBSOCKET /path` matches handshakes. A pattern for GET
    matches HEAD too, as routes do, unless HEAD has one of its own. The path is the app's: without a root path.
    """

    text: str
    methods: frozenset[str]
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> RoutePattern:
        """Parse a pattern; raises ValueError that says what is wrong."""
        head, _, tail = text.strip().rpartition(" ")
        methods = frozenset(part.strip().upper() for part in head.split("|")) if head else frozenset()
        methods -= {"*"}
        unknown = sorted(methods - _METHODS)
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r} in route pattern {text!r}; write 'POST /path/{{id}}'")
        if not tail.startswith("/"):
            raise ValueError(f"route pattern {text!r} must have a path that starts with '/'")
        segments = tuple(_segment(part, text) for part in tail[1:].split("/"))
        if "**" in segments[:-1]:
            raise ValueError(f"'**' may only be the last segment of route pattern {text!r}")
        return cls(text, methods, segments)

    def __str__(self) -> str:
        return self.text


def _segment(part: str, text: str) -> str:
    if part == "**" or (part.startswith("{") and part.endswith(":path}")):
        return "**"
    if part == "*" or (part.startswith("{") and part.endswith("}")):
        return "*"
    if "{" in part or "*" in part:
        raise ValueError(f"a placeholder must be a whole segment in route pattern {text!r}: {part!r}")
    return part


def route_path(scope: Scope) -> str:
    """The path as the app's own routes see it: without the `root_path` that a server or a mount put before it.

    As Starlette's routing has it: where a proxy had cut the root path off already, the path is returned as it is.
    """
    path: str = scope["path"]
    root = scope.get("root_path")
    if not root or not path.startswith(root):
        return path
    if len(path) == len(root):
        return "/"
    return path[len(root) :] if path[len(root)] == "/" else path


class _Node(Generic[T]):
    __slots__ = ("any", "children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.any: _Node[T] | None = None
        self.here: dict[str, T] | None = None
        self.rest: dict[str, T] | None = None


class Routes(Generic[T]):
    """A table from route patterns to values; the most specific pattern wins, then the first given.

    >>> table = Routes([("POST /api/bots/{id}/task", "bot"), ("/api/**", "api")])
    >>> table.find("POST", "/api/bots/7/task")
    'bot'
    """

    def __init__(self, entries: Iterable[tuple[str | RoutePattern, T]]) -> None:
        self._root: _Node[T] = _Node()
        self.empty = True
        for pattern, value in entries:
            self.empty = False
            self._add(RoutePattern.parse(pattern) if isinstance(pattern, str) else pattern, value)

    def _add(self, pattern: RoutePattern, value: T) -> None:
        node = self._root
        for segment in pattern.segments:
            if segment == "**":
                if node.rest is None:
                    node.rest = {}
                table = node.rest
                break
            if segment == "*":
                if node.any is None:
                    node.any = _Node()
                node = node.any
            else:
                node = node.children.setdefault(segment, _Node())
        else:
            if node.here is None:
                node.here = {}
            table = node.here
        for method in pattern.methods or ("",):
            table.setdefault(method, value)

    def find(self, method: str, path: str, default: Any = None) -> T | Any:
        """The value for this method ("WEBSOCKET" for handshakes) and route path, else `default`."""
        if self.empty:
            return default
        found = _walk(self._root, path[1:].split("/"), 0, method)
        return default if found is _NOTHING else found

    def match(self, scope: Scope, default: Any = None) -> T | Any:
        """`find` for an HTTP or WebSocket scope."""
        if self.empty:
            return default
        found = _walk(self._root, route_path(scope)[1:].split("/"), 0, scope.get("method") or "WEBSOCKET")
        return default if found is _NOTHING else found


_NOTHING: Any = object()


def _walk(node: _Node[Any], parts: list[str], index: int, method: str) -> Any:
    if index == len(parts):
        table = node.here
    else:
        child = node.children.get(parts[index])
        if child is not None:
            found = _walk(child, parts, index + 1, method)
            if found is not _NOTHING:
                return found
        if node.any is not None:
            found = _walk(node.any, parts, index + 1, method)
            if found is not _NOTHING:
                return found
        table = node.rest
    if table is not None:
        if method in table:
            return table[method]
        if method == "HEAD" and "GET" in table:  # what GET does, HEAD does
            return table["GET"]
        return table.get("", _NOTHING)
    return _NOTHING


_ROUTES = 4096
"""Routes whose templates are kept at most: some apps make routes as they go."""


class Templates:
    """Reads the template of the route that answered from the scope, for Starlette, FastAPI and Litestar apps."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._by_endpoint: dict[Any, str] = {}
        self._mounts: dict[str, str] = {}
        self._routes: dict[int, tuple[Any, str]] = {}

    def __call__(self, scope: Scope) -> str:
        """The full mounted template, or "" when nothing matched (or the framework does not say)."""
        route = scope.get("route")
        plain = "app_root_path" not in scope and "fastapi" not in scope
        if plain:  # the usual case, at a quarter of what the rest costs
            known = self._routes.get(id(route))
            if known is not None and known[0] is route:
                return known[1]
        if route is None:
            template = scope.get("path_template")  # Litestar
            if template is not None:
                return str(template)
            endpoint = scope.get("endpoint")
            found = "" if endpoint is None else self._from_endpoint(endpoint)
            if not found and endpoint is not None:  # FastAPI names no route for a mount
                base = scope.get("app_root_path")
                mounted = "" if base is None else scope.get("root_path", "")[len(base) :]
                found = self._mount(mounted) + "/{path}" if mounted else ""
            return found
        mounted = scope.get("root_path", "")
        base = scope.get("app_root_path")
        mounted = "" if base is None else mounted[len(base) :]
        if getattr(route, "routes", None) is not None and hasattr(route, "app"):  # a Mount was the last to match
            return self._mount(mounted) + "/{path}"
        fastapi = scope.get("fastapi")
        leaf: str = ""
        if isinstance(fastapi, Mapping):  # nested routers: `route` is only the leaf, this has the whole prefix
            effective = fastapi.get("effective_route_context")
            if effective is not None and getattr(effective, "original_route", None) is route:
                leaf = getattr(effective.starlette_route, "path_format", "") or effective.path_format
        if not leaf:
            leaf = getattr(route, "path_format", None) or getattr(route, "path", "") or ""
        if plain:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            self._routes[id(route)] = (route, leaf)  # routes have no hash; the reference keeps the number theirs
            return leaf
        return self._mount(mounted) + leaf if mounted else leaf

    def of(self, route: Any) -> str:
        """The template of a route that stands in no mount and no FastAPI router; from any thread."""
        known = self._routes.get(id(route))
        if known is not None and known[0] is route:
            return known[1]
        return self({"route": route})

    def _mount(self, literal: str) -> str:
        """The template of a mount point, from its literal path."""
        found = self._mounts.get(literal)
        if found is None:
            found = _mount_template(getattr(self._app, "routes", ()), literal)
            if found is None:
                return literal
            if found == literal:  # only literal mount points are kept, so clients can't grow the table
                self._mounts[literal] = literal
        return found

    def _from_endpoint(self, endpoint: Any) -> str:
        try:
            found = self._by_endpoint.get(endpoint)
            if found is None:
                found = _find_endpoint(getattr(self._app, "routes", ()), endpoint) or ""
                if found:
                    self._by_endpoint[endpoint] = found
        except TypeError:  # an unhashable endpoint
            return ""
        return found


def _mount_template(routes: Iterable[Any], literal: str) -> str | None:
    if not literal:
        return ""
    for route in routes:
        regex = getattr(route, "path_regex", None)
        inner = getattr(route, "routes", None)
        if regex is None or inner is None:
            continue
        match = regex.match(literal + "/")
        if match is None:
            continue
        rest = match.groupdict().get("path", "")
        remaining = "/" + rest.rstrip("/") if rest.rstrip("/") else ""
        below = _mount_template(inner, remaining)
        if below is not None:
            return str(getattr(route, "path", "")) + below
    return None


def _find_endpoint(routes: Iterable[Any], endpoint: Any) -> str | None:
    for route in routes:
        if getattr(route, "endpoint", None) is endpoint:
            return str(getattr(route, "path_format", None) or getattr(route, "path", ""))
        inner = getattr(route, "routes", None)
        if inner:
            below = _find_endpoint(inner, endpoint)
            if below is not None:
                return str(getattr(route, "path", "")) + below
    return None
