"""The five lines: a Starlette app, hardened. `deia-hardening run main:app`"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_hardening import harden


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


app = harden(Starlette(routes=[Route("/", hello)]))
