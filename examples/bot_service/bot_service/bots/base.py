"""What the bots share: `POST /work` with {"text": …} answers {"result": …}; `GET /health` says that it lives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def bot(name: str, work: Callable[[str], Any]) -> Starlette:
    """An ASGI app around one function; a ValueError of it is the caller's mistake (422)."""

    async def do(request: Request) -> JSONResponse:
        try:
            body = await request.json()
            text = body.get("text") if isinstance(body, dict) else None
            if not isinstance(text, str):
                raise ValueError("send {'text': …}")
            return JSONResponse({"bot": name, "result": work(text)})
        except ValueError as error:
            return JSONResponse({"bot": name, "error": str(error)}, status_code=422)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"bot": name, "ok": True})

    return Starlette(routes=[Route("/work", do, methods=["POST"]), Route("/health", health)])


def serve(app: Starlette) -> None:
    """Serve a bot by itself: `python -m bot_service.bots.summary 9001`."""
    import uvicorn

    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 9000)
