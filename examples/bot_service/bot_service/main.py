"""The service: an ordinary FastAPI app, and the one line that hardens it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from bot_service.api import router
from bot_service.settings import Limits
from bot_service.work import Workers
from deia_hardening import harden

VERSION = "1"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Bots that ran when the service went down, however it went, run again."""
    async with app.state.workers.following():
        yield


def create_app(version: str = VERSION, claims_as: str = "") -> FastAPI:
    """The bare service. `claims_as`: its name in the settings' `migration.versions`, so that it does its own tasks."""
    app = FastAPI(title="bot service", version=version, lifespan=lifespan)
    app.state.workers = Workers(claims_as)
    app.include_router(router)

    @app.get("/")
    async def about() -> dict[str, str]:
        """Which version answers."""
        return {"service": "bot service", "version": version}

    return app


app = create_app()
app = harden(app, os.environ.get("BOT_SERVICE_CONFIG", Path(__file__).parents[1] / ".deia/config"), app_settings=Limits)
