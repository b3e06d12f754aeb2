"""What the server tests serve: an endless stream, a WebSocket, and where the app says that it went down."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from deia_hardening import RequestContext, current, harden


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    with open(os.environ["APP_DOWN"], "a") as file:
        file.write("down\n")


def bare() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root() -> dict[str, object]:
        return {"hardened": bool(current(RequestContext).id), "pid": os.getpid()}

    @app.get("/who")
    async def who(request: Request) -> dict[str, object]:
        context = current(RequestContext)
        client = request.client.host if request.client else ""
        return {
            "id": context.id, "claimed": context.claims.get("x-request-id"), "client": client, "url": str(request.url),
        }  # fmt: skip

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            while True:
                yield "data: tick\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(Exception):
            while True:
                await websocket.send_text(await websocket.receive_text())

    return app


def make() -> FastAPI:
    return harden(bare(), os.environ["APP_CONFIG"])


if os.environ.get("APP_CONFIG"):
    app = make()
