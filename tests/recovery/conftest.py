"""Durable state without an app around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deia_hardening.testing import FakeClock
from deia_recovery.engine.engine import Engine
from deia_recovery.engine.generation import create_first
from deia_recovery.engine.options import EngineOptions
from deia_recovery.stores.state import State


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(root: Path, clock: FakeClock) -> Iterator[Engine]:
    generation = create_first(root)
    engine = Engine(generation.folder, EngineOptions(reserve=0, idle=0.2), clock, generation=generation.number)
    yield engine
    engine.close()


@pytest.fixture
def state(engine: Engine) -> State:
    return State(engine)
