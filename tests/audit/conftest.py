"""Helpers of the audit tests: reading a trail, making logs with evidence without an app."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_audit.layout import Layout
from deia_audit.query.search import Search
from deia_audit.seal import EpochPolicy
from deia_audit.sealer import Sealer
from deia_hardening.clock import SYSTEM_CLOCK
from deia_hardening.journal import Journal, JournalReader, JournalSettings, open_journal
from deia_hardening.settings import Bytes

ACTORS = ["alice", "bob", "carol"]
ACTIONS = ["GET /bots", "POST /bots/{id}", "bot.assigned"]


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


@pytest.fixture
def filled(make_trail: Callable[..., Any]) -> tuple[Any, Search, list[dict[str, Any]]]:
    """A trail of several segments, and its records as dicts."""
    settings = JournalSettings(durability="sync", compression="none", segment_bytes=Bytes("32KiB"))
    trail = make_trail(settings=settings)
    chance = random.Random(11)
    for number in range(600):
        status = chance.choice([200, 200, 200, 404, 500, 503])
        trail.journal.append(
            {
                "id": f"id-{number}",
                "kind": "http",
                "action": chance.choice(ACTIONS),
                "actor": {"type": "user", "id": chance.choice(ACTORS)},
                "http": {"method": "GET", "status": status, "path": f"/bots/{number % 17}"},
                "src": {"ip": f"10.0.{number % 3}.{number % 7}"},
                "outcome": "success" if status < 400 else "failure",
                "trace": f"{number % 50:032x}",
                "reason": "nightly load test" if number % 10 == 0 else "",
            }
        )
        if number % 50 == 49:
            assert trail.journal.drain(30)
    trail.sealer.finish()
    assert len(list(trail.layout.log.parent.glob("audit-trail.jsonl.*"))) > 2
    search = Search(trail.layout, lambda: trail.sealer.checkpoint, elsewhere=lambda *what: False)
    records = [json.loads(record.line) for record in JournalReader(trail.layout.log).records(0, None)]
    yield trail, search, records  # type: ignore[misc]
    search.close()
