"""What the settings tests share: a Settings class with a field of every type, and a folder of files."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from deia_hardening.settings import Bytes, Ratio, Seconds, setting


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@attrs.frozen
class Sink:
    kind: Literal["file"] = "file"
    path: Path = setting(Path("a.log"), "where to")


@attrs.frozen
class Remote:
    url: str = setting(attrs.NOTHING, "where to")
    kind: Literal["remote"] = "remote"
    timeout: Seconds = setting(Seconds("5s"), "how long", ge=0.1, le=60)


@attrs.frozen
class Inner:
    retries: int = setting(3, "how often", ge=0, le=10)
    wait: Seconds = setting(Seconds("1s"), "how long", ge=0)


@attrs.frozen
class Everything:
    """A section with a field of every type."""

    name: str = setting("x", "a text", ge=1, le=20)
    count: int = setting(1, "a number", ge=1, le=64)
    load: float = setting(0.5, "a float", ge=0, le=10)
    on: bool = setting(True, "a switch")
    interval: Seconds = setting(Seconds("30s"), "a duration", ge=1, le=3600)
    size: Bytes = setting(Bytes("1MiB"), "a size", ge=1024, le=1 << 30)
    share: Ratio = setting(Ratio("5%"), "a ratio", ge=0, le=1)
    mode: Literal["fast", "safe"] = setting("fast", "a choice")
    level: Level = setting(Level.LOW, "an enum")
    color: str = setting("red", "a choice of texts", choices=("red", "green"))
    maybe: int | None = setting(None, "perhaps a number", ge=0)
    limit: Seconds | Literal["never"] = setting("never", "a duration or never")
    tags: tuple[str, ...] = setting((), "a list", le=5)
    weights: dict[str, Ratio] = setting(None, "a map", factory=dict)
    by_level: dict[Level, int] = setting(None, "a map by enum", factory=dict)
    path: Path = setting(Path("."), "a path", file_only=True)
    token: str | None = setting(None, "a secret", secret=True)
    delta: datetime.timedelta = setting(datetime.timedelta(seconds=1), "a timedelta")
    inner: Inner = setting(Inner(), "a section in it")
    sinks: tuple[Sink | Remote, ...] = setting((), "a list of either")
    store: str = setting("sqlite", "needs a restart", restart=True)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if self.on and self.inner.retries > self.count + 9:
            yield "inner.retries", "more retries than count allows"


@pytest.fixture
def everything() -> type[Everything]:
    return Everything


@pytest.fixture
def classes() -> dict[str, Any]:
    return {"Everything": Everything, "Inner": Inner, "Sink": Sink, "Remote": Remote, "Level": Level}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        folder = tmp_path / ".deia" / "config"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write
