"""An app that does all that a server offers: files, ranges, streams, uploads, hints, trailers, WebSockets.

`SINK_HOME` in the environment hardens it with all five plugins; without, it is served bare.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, UploadFile, WebSocket, WebSocketException
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": "open"}


async def where(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.scope['root_path']} {request.scope['path']} {request.query_params}")


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """What frameworks hide: informational answers and trailers where the server has them, else plainly."""
    extensions = scope.get("extensions") or {}
    if "http.response.early_hint" in extensions:
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
    trailers = "http.response.trailers" in extensions
    headers = [(b"X-Mixed-Case", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"trailer", b"x-sum")]
    await send({"type": "http.response.start", "status": 207, "headers": headers, "trailers": trailers})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})
    if trailers:
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})


def bare() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    done: list[str] = []

    @app.get("/state")
    async def state(request: Request) -> Any:
        return {"pool": request.state.pool, "done": done}

    @app.get("/sync")
    def sync(tasks: BackgroundTasks) -> str:
        tasks.add_task(done.append, "sync")
        return "sync"

    @app.get("/file")
    async def file() -> FileResponse:
        return FileResponse(HERE / "sink.py", media_type="text/plain")

    @app.post("/upload")
    async def upload(file: UploadFile) -> Any:
        return {"name": file.filename, "size": len(await file.read()), "type": file.content_type}

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        length = request.headers.get("content-length", "chunked")
        return PlainTextResponse(await request.body(), 201, {"x-length": length})

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            for number in range(4):
                yield f"data: {number}\n\n"
                await anyio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("on purpose")

    @app.get("/fails-late")
    async def fails_late() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            yield "one"
            raise RuntimeError("on purpose")

        return StreamingResponse(stream())

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", {"x-pot": "1"})

    @app.get("/away")
    async def away() -> RedirectResponse:
        return RedirectResponse("/state", 307)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="chat", headers=[(b"x-own", b"1")])
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "bye":
                await websocket.close(4001, "bye")
                return
            if message.get("text") == "policy":
                raise WebSocketException(1008, "policy")
            await (websocket.send_bytes(message["bytes"]) if message.get("bytes") else websocket.send_json(message))

    @app.websocket("/refused")
    async def refused(websocket: WebSocket) -> None:
        await websocket.close(4403)

    @app.websocket("/denied")
    async def denied(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("no", 402, headers={"x-own": "1"}))

    app.mount("/static", StaticFiles(directory=HERE))
    app.mount("/inner", Starlette(routes=[Route("/where", where)]))
    app.mount("/raw", raw)
    return app


app = bare()
if os.environ.get("SINK_HOME"):
    from deia_hardening import harden

    five: dict[str, Any] = {"audit": {}, "config": {}, "degradation": {}, "migration": {}, "recovery": {}}
    app = harden(app, {"home": os.environ["SINK_HOME"], **five})
