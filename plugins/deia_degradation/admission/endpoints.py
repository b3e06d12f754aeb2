"""Which routes of the app run in threads: the synchronous endpoints of Starlette and FastAPI apps.

Read from the app's routes once, before any request on them was seen, and compiled into the core's route table; what
can't be asked (another framework, a route class of its own kind) counts as asynchronous, which is only less precise.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from deia_hardening.plugin import RoutePattern, Routes, Scope

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_PATH = re.compile(r"\{[^{}:]*:path\}")
_DEPTH = 20
"""Mounts in mounts that are looked into."""


class SyncEndpoints:
    """The synchronous endpoints of one app. `empty` and `match` are for the request path; `look` costs some µs."""

    def __init__(self) -> None:
        self.empty = True
        self._routes: Routes[bool] = Routes(())
        self._app: Any = None
        self._number = -1

    def look(self, app: Any) -> None:
        """See whether the app has other routes than at the last look, and read them then. Never raises."""
        routes = getattr(getattr(app, "router", None), "routes", None)
        if routes is None or (app is self._app and len(routes) == self._number):
            return
        try:
            found = compiled(routes)
        except Exception:  # a route class of its own kind: nothing is known of this app
            found = Routes(())
        self._app, self._number = app, len(routes)
        self._routes = found
        self.empty = found.empty

    def match(self, scope: Scope) -> bool:
        """Whether this request's endpoint runs in a thread. About 0.5 µs."""
        return bool(self._routes.match(scope, False))


def compiled(routes: Iterable[Any]) -> Routes[bool]:
    """A table that says True for synchronous endpoints; empty when there is none."""
    entries: list[tuple[RoutePattern, bool]] = []
    earlier: list[tuple[Any, frozenset[str]]] = []
    for path, pattern, methods, asynchronous in _all(routes, "", _DEPTH):
        example = _PLACEHOLDER.sub("x", path)
        # The app takes the first route that matches, the table the most specific: what never gets its turn is left out.
        methods = frozenset(
            method
            for method in methods
            if not any(method in others and regex.match(example) for regex, others in earlier)
        )
        earlier.append((pattern, methods))
        for sync in (False, True):
            chosen = frozenset(method for method in methods if (method not in asynchronous) is sync)
            if chosen:
                entries.append((RoutePattern(path, chosen, segments(path)), sync))
    return Routes(entries if any(sync for _, sync in entries) else ())


def segments(path: str) -> tuple[str, ...]:
    """A route template of Starlette's as the segments of a `RoutePattern`."""
    found: list[str] = []
    for part in path[1:].split("/"):
        if _PATH.search(part):
            found.append("**")
            break
        found.append("*" if "{" in part else part)
    return tuple(found)


def _all(
    routes: Iterable[Any], prefix: str, depth: int
) -> Iterator[tuple[str, re.Pattern[str], frozenset[str], frozenset[str]]]:
    """Path, its expression, methods and those of them that are asynchronous, in the order the app asks them."""
    for route in routes:
        nested = getattr(route, "effective_route_contexts", None)  # FastAPI keeps included routers as they were
        for one in (route,) if nested is None else nested():
            path = getattr(one, "path", None)
            if path is None:
                starlette = getattr(one, "starlette_route", None)
                path = getattr(starlette, "path", None)
            below = getattr(one, "routes", None)
            endpoint = getattr(one, "endpoint", None)
            if below and endpoint is None and depth:
                yield from _all(below, prefix + (path or ""), depth - 1)
            elif path is not None and endpoint is not None:
                yield from _one(prefix + path, one, endpoint)


def _one(path: str, route: Any, endpoint: Any) -> Iterator[tuple[str, re.Pattern[str], frozenset[str], frozenset[str]]]:
    methods = frozenset(getattr(route, "methods", None) or _METHODS) & _METHODS
    if hasattr(route, "dependant"):  # FastAPI: any callable
        asynchronous = methods if not _threaded(endpoint, any_callable=True) else frozenset()
    elif inspect.isclass(endpoint):  # Starlette's HTTPEndpoint, or an ASGI class
        asynchronous = frozenset(
            method for method in methods if not _threaded(getattr(endpoint, method.lower(), None), any_callable=False)
        )
    else:
        asynchronous = methods if not _threaded(endpoint, any_callable=False) else frozenset()
    text = re.escape(_PLACEHOLDER.sub("\0", _PATH.sub("\1", path))).replace("\0", "[^/]+").replace("\1", ".*")
    yield path, _expression(route, path) or re.compile(f"^{text}$"), methods, asynchronous


def _expression(route: Any, path: str) -> re.Pattern[str] | None:
    """The route's own expression, where its path is the whole one: it knows of `{id:int}`."""
    own = getattr(route, "path_regex", None)
    return own if isinstance(own, re.Pattern) and getattr(route, "path", None) == path else None


def _threaded(endpoint: Any, *, any_callable: bool) -> bool:
    """Whether the framework runs this callable in a thread (generators are streams, which take one per item)."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    if not (inspect.isfunction(endpoint) or inspect.ismethod(endpoint)):
        if not any_callable or not callable(endpoint) or inspect.isclass(endpoint):
            return False
        endpoint = type(endpoint).__call__
    endpoint = inspect.unwrap(endpoint) if any_callable else endpoint
    return not (
        inspect.iscoroutinefunction(endpoint)
        or inspect.isasyncgenfunction(endpoint)
        or inspect.isgeneratorfunction(endpoint)
    )
