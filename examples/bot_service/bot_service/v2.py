"""The second version of the service, for migration: it also says what it can do."""

from __future__ import annotations

from fastapi import FastAPI

from bot_service.main import create_app
from bot_service.work import SKILLS

app: FastAPI = create_app("2", claims_as="2")


@app.get("/api/skills")
async def skills() -> list[str]:
    """What bots can be registered for (new in version 2)."""
    return sorted(SKILLS)
