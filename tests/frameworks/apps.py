"""Services as people write them, each served twice by the tests: as it is, and hardened with all five plugins.

`uvicorn --factory apps:make`, with `APP` the name of a function below and `APP_HOME` a folder where it is hardened.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FIVE: dict[str, Any] = {"audit": {}, "config": {}, "degradation": {}, "migration": {}, "recovery": {}}
SECRET = b"signing secret"


def webhook() -> Any:
    """A chat platform's webhook: the signature is over the raw body, byte for byte."""

    async def hook(request: Request) -> Response:
        raw = await request.body()
        signed = b"v0:" + request.headers.get("x-request-timestamp", "").encode() + b":" + raw
        expected = "v0=" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, request.headers.get("x-signature", "")):
            return PlainTextResponse("bad signature", 401)
        return JSONResponse({"challenge": (await request.json())["challenge"], "length": len(raw)})

    return Starlette(routes=[Route("/hook", hook, methods=["POST"])])


def gateway() -> Any:
    """An OpenAI-style gateway: it streams a model's server-sent events on, as httpx gets them."""
    import httpx
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/model")
    async def model() -> StreamingResponse:
        async def tokens() -> AsyncIterator[str]:
            for number in range(5):
                yield f'data: {{"choices":[{{"delta":{{"content":"token {number}"}}}}]}}\n\n'
                await asyncio.sleep(0.02)
            yield "data: [DONE]\n\n"

        return StreamingResponse(tokens(), media_type="text/event-stream")

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Any:
        wanted = await request.json()
        if not wanted.get("messages"):
            return JSONResponse({"error": {"type": "invalid_request_error"}}, 400)
        if not wanted.get("stream"):
            return {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": "hello"}}]}
        host, port = request.scope["server"]
        client = httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False)
        answer = await client.send(client.build_request("POST", "/model"), stream=True)

        async def relay() -> AsyncIterator[bytes]:
            try:
                async for line in answer.aiter_lines():
                    yield line.encode() + b"\n"
            finally:
                await answer.aclose()
                await client.aclose()

        return StreamingResponse(relay(), answer.status_code, media_type=answer.headers["content-type"])

    return app


def sse() -> Any:
    from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent

    async def events(request: Request) -> EventSourceResponse:
        async def stream() -> AsyncIterator[Any]:
            yield {"event": "hello", "data": "one\ntwo", "id": "1", "retry": 1000}
            yield ServerSentEvent(data="three", comment="note")
            await asyncio.sleep(0.02)
            yield JSONServerSentEvent(data={"four": 4})

        return EventSourceResponse(stream(), headers={"x-own": "1"}, ping=15, background=None)

    return Starlette(routes=[Route("/events", events)])


def mcp() -> Any:
    from mcp.server import MCPServer

    server = MCPServer("demo")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    async def fail() -> str:
        """Fail."""
        raise ValueError("on purpose")

    @server.resource("memo://{name}")
    def memo(name: str) -> str:
        """Read a memo."""
        return f"memo {name}"

    return server.streamable_http_app(
        json_response=os.environ.get("MCP_JSON") == "1", stateless_http=os.environ.get("MCP_STATELESS") == "1"
    )


def socketio() -> Any:
    import socketio as library

    # Its polling leaves a client that says goodbye waiting until the next ping is overdue: 45 s by default.
    server = library.AsyncServer(async_mode="asgi", cors_allowed_origins="*", ping_interval=2, ping_timeout=6)

    @server.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> bool:
        await server.save_session(sid, {"name": (auth or {}).get("name", "nobody")})
        return (auth or {}).get("name") != "refused"

    @server.event
    async def hello(sid: str, data: Any) -> Any:
        session = await server.get_session(sid)
        await server.emit("told", {"by": session["name"], "data": data}, to=sid)
        return {"name": session["name"], "got": data}

    @server.event
    async def binary(sid: str, data: bytes) -> bytes:
        return data[::-1]

    async def other(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("other")(scope, receive, send)

    return library.ASGIApp(server, other)


def gradio() -> Any:
    import gradio as library
    from fastapi import FastAPI

    with library.Blocks() as blocks:
        box, out = library.Textbox(), library.Textbox()

        def greet(name: str) -> Any:
            yield f"hello {name}"
            yield f"goodbye {name}"

        box.submit(greet, box, out, api_name="greet")
    return library.mount_gradio_app(FastAPI(), blocks, path="/ui")


def make() -> Any:
    app = globals()[os.environ["APP"]]()
    if os.environ.get("APP_HOME"):
        from deia_hardening import harden

        app = harden(app, {"home": os.environ["APP_HOME"], **FIVE})
    return app
