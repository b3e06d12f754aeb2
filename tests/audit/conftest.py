"""Helpers of the audit tests: reading a trail, making logs with evidence without an app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_audit.layout import Layout
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import Journal, JournalSettings, open_journal


class Trail:
    """A journal with its evidence, written and sealed by hand."""

    def __init__(self, home: Path, *, epoch: int = 10_000, settings: JournalSettings | None = None) -> None:
        self.home = home
        self.layout = Layout.of(home)
        for folder in (self.layout.log.parent, self.layout.keys.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.journal: Journal = open_journal(
            self.layout.log, settings or JournalSettings(durability="sync", compression="none"), clock=SYSTEM_CLOCK
        )
        self.sealer = Sealer(self.layout, self.journal, "test.example", EpochPolicy(epoch, 1e9), SYSTEM_CLOCK)
        self.journal.on_batch(self.sealer.written, self.sealer.synced)
        self.sealer.open()
        assert not self.sealer.problem

    def add(self, count: int, start: int = 0) -> None:
        """Append `count` records and seal them."""
        for number in range(start, start + count):
            self.journal.append({"kind": "test", "action": "test.done", "number": number, "text": "x" * 40})
        assert self.journal.drain(30)
        self.sealer.finish()
        assert not self.sealer.problem, self.sealer.problem

    def close(self) -> None:
        self.journal.close()

    def lines(self) -> list[bytes]:
        return self.layout.log.read_bytes().split(b"\n")[1:-1]


@pytest.fixture(scope="session")
def trail_class() -> type[Trail]:
    return Trail


@pytest.fixture
def make_trail(tmp_path: Path) -> Callable[..., Trail]:
    """Makes trails that are closed at the end."""
    made: list[Trail] = []

    def make(home: Path | None = None, **options: Any) -> Trail:
        trail = Trail(home or tmp_path / "home", **options)
        made.append(trail)
        return trail

    yield make  # type: ignore[misc]
    for trail in made:
        trail.close()


@pytest.fixture
def read_trail() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the records of a home's live trail."""

    def read(home: Path) -> list[dict[str, Any]]:
        lines = (home / "logs" / "audit-trail.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
        return [json.loads(line) for line in lines[1:]]

    return read
