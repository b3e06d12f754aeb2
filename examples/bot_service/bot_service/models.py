"""What the API takes and gives."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Name = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="lower case letters, digits and '-'")


class BotSpec(BaseModel):
    """A bot to register."""

    id: str = Name
    skill: Literal["summary", "arithmetic", "statistics"]


class Bot(BaseModel):
    """A registered bot. Times are Unix seconds."""

    id: str
    skill: str
    state: Literal["stopped", "running"] = "stopped"
    registered: float
    seen: float = 0.0
    done: int = 0


class TaskRequest(BaseModel):
    """A piece of work."""

    text: str = Field(max_length=20_000)
    skill: Literal["summary", "arithmetic", "statistics"] = "summary"
    priority: int = Field(default=0, ge=-10, le=10)
    key: str | None = Field(default=None, max_length=200, description="idempotency key: the same one is one task")


class Task(BaseModel):
    """A piece of work as the queue holds it."""

    id: str
    state: str
    skill: str
    priority: int
    attempts: int
    result: Any = None
    error: str = ""


class Job(BaseModel):
    """What a task in the queue carries."""

    text: str
    skill: str


class Message(BaseModel):
    """A message from one bot to another."""

    sender: str = Name
    text: str = Field(max_length=4_000)
    at: float = 0.0


class Mailbox(BaseModel):
    """What waits for one bot."""

    messages: list[Message] = []


class LastScaling(BaseModel):
    """When it was last scaled (Unix seconds), so that every process keeps the same cooldown."""

    at: float = 0.0


class Scaling(BaseModel):
    """What scaling sees and suggests."""

    running: int
    waiting: int
    load: float
    allowed: bool
    suggestion: Literal["up", "down", "hold"]
    cooldown: float
