"""Which routes are synchronous, read from the routes of real apps, in the order in which the apps ask them."""

from __future__ import annotations

import functools

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.routing import Route

from deia_degradation.admission.endpoints import SyncEndpoints, compiled


def sync(x: str = ""): ...


async def asynchronous(x: str = ""): ...


class Callable:
    def __call__(self): ...


class AsyncCallable:
    async def __call__(self): ...


class Mixed(HTTPEndpoint):
    def get(self, request): ...

    async def post(self, request): ...


def fastapi_app():
    app = FastAPI()
    app.get("/sync")(sync)
    app.get("/async")(asynchronous)
    app.get("/object")(Callable())
    app.get("/async-object")(AsyncCallable())
    app.get("/partial")(functools.partial(sync))
    app.get("/items/me")(asynchronous)
    app.get("/items/{x}")(sync)
    app.get("/users/{x}")(sync)
    app.get("/users/me")(asynchronous)  # never reached: the one before takes it
    app.post("/users/me")(asynchronous)
    app.get("/numbers/{x:int}")(sync)
    app.get("/numbers/none")(asynchronous)
    inner, outer = APIRouter(), APIRouter(prefix="/api")
    inner.post("/bots/{bot_id}/task")(sync)
    outer.include_router(inner, prefix="/v1")
    app.include_router(outer)
    sub = FastAPI()
    sub.get("/in/{x:path}")(sync)
    app.mount("/sub", sub)
    return app


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/sync", True),
        ("GET", "/async", False),
        ("GET", "/object", True),
        ("GET", "/async-object", False),
        ("GET", "/partial", True),
        ("GET", "/items/me", False),
        ("GET", "/items/7", True),
        ("GET", "/users/me", True),
        ("POST", "/users/me", False),
        ("GET", "/numbers/7", True),
        ("GET", "/numbers/none", False),
        ("POST", "/api/v1/bots/7/task", True),
        ("GET", "/api/v1/bots/7/task", None),
        ("GET", "/sub/in/a/b/c", True),
        ("GET", "/nowhere", None),
    ],
)
def test_a_fastapi_route_is_known_for_what_it_is(method, path, expected):
    assert compiled(fastapi_app().routes).find(method, path) is expected


def test_methods_of_an_endpoint_class_are_told_apart():
    table = compiled([Route("/x", Mixed)])
    assert (table.find("GET", "/x"), table.find("POST", "/x")) == (True, False)


def test_an_app_without_synchronous_endpoints_costs_nothing():
    assert compiled([Route("/x", asynchronous)]).empty


def test_a_route_that_is_added_later_is_seen_at_the_next_look():
    app = Starlette(routes=[Route("/x", asynchronous)])
    endpoints = SyncEndpoints()
    endpoints.look(app)
    assert endpoints.empty
    app.router.routes.append(Route("/y", sync))
    endpoints.look(app)
    assert endpoints.match({"type": "http", "method": "GET", "path": "/y"})


def test_routes_of_an_unknown_kind_are_no_obstacle():
    class Strange:
        @property
        def path(self):
            raise RuntimeError("not today")

    app = Starlette(routes=[])
    app.router.routes.append(Strange())
    endpoints = SyncEndpoints()
    endpoints.look(app)
    endpoints.look(None)
    assert endpoints.empty
