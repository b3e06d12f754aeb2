"""What the journal's tests share: settings, opened journals that are closed again, and their lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from deia_hardening.journal import Journal, JournalReader, JournalSettings, open_journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "test.jsonl"


@pytest.fixture
def settings() -> JournalSettings:
    return JournalSettings(reserve=0)


@pytest.fixture
def opened(path: Path, settings: JournalSettings) -> Iterator[Callable[..., Journal]]:
    """Opens a journal with changed settings; all are closed at the end."""
    journals: list[Journal] = []

    def open_one(at: Path | None = None, **changes: Any) -> Journal:
        journal = open_journal(at or path, attrs.evolve(settings, **changes))
        journals.append(journal)
        return journal

    yield open_one
    for journal in journals:
        journal.close()


@pytest.fixture
def lines(path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The decoded lines of the live file, its header first."""
    return lambda: [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def events(path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The events of the whole journal, the journal's own included."""
    return lambda: [record.event() for record in JournalReader(path)]
