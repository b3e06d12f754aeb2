"""What operators do while the trail can't be written is told on standard error at once, and recorded later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from deia_audit import AuditLogger
from deia_audit.fallback import MOST, Waiting, line_of
from deia_hardening.context import Actor
from deia_hardening.events import OperationInvoked
from deia_hardening.journal import JournalError, JournalHealth
from deia_hardening.testing import running


class Fate:
    def __init__(self, known: bool, lost: bool) -> None:
        self.known, self.lost = known, lost

    def done(self) -> bool:
        return self.known

    def wait(self, timeout: float | None = None) -> bool:
        if self.lost:
            raise JournalError("the disk is gone")
        return True


def test_only_what_was_lost_is_recorded_again_until_it_is_durable() -> None:
    waiting = Waiting()
    again: list[str] = []

    def recorded(name: str, fate: Fate) -> Callable[[], Fate]:
        return lambda: (again.append(name), fate)[1]

    waiting.add(recorded("kept", Fate(True, False)), Fate(True, False))
    waiting.add(recorded("queued", Fate(True, False)), Fate(False, False))
    waiting.add(recorded("lost", Fate(True, False)), Fate(True, True))
    assert waiting.retry() == 2
    assert again == ["lost"]
    assert waiting.retry() == 1
    for _ in range(2 * MOST):
        waiting.add(recorded("more", Fate(True, False)), Fate(False, False))
    assert len(waiting) == MOST


def test_a_line_steers_no_terminal() -> None:
    assert "\x1b" not in line_of({"reason": "\x1b[2J\n"})
    assert "\n" not in line_of({"reason": "\x1b[2J\n"})


async def test_an_action_without_a_trail_is_told_and_comes_into_it_later(
    tmp_path: Path,
    read_trail: Callable[[Path], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("deia_audit.service.tell", told.append)
    async with running(Starlette(), {"home": str(tmp_path), "audit": {}}) as live:
        logger = live.service(AuditLogger)
        journal, real = logger.journal, logger.journal.append
        sick = True
        health = JournalHealth(False, "failed", "no space", 0.0)
        real_health = journal.health
        monkeypatch.setattr(journal, "health", lambda: health if sick else real_health())
        monkeypatch.setattr(journal, "append", lambda event, **more: Fate(True, True) if sick else real(event, **more))
        alice = Actor("user", "alice")
        logger.record_event(
            OperationInvoked(action="operation.bot.stop", operation="bot.stop", actor=alice, reason="fire")
        )
        while not told:  # a thread of the core writes it
            await asyncio.sleep(0.005)
        logger.retry()
        sick = False
        logger.retry()
    (line,) = told
    assert "operation.bot.stop" in line
    assert "user:alice" in line
    (late,) = [one for one in read_trail(tmp_path) if one.get("action") == "operation.bot.stop"]
    assert late["late"] is True
    assert (late["actor"]["id"], late["reason"]) == ("alice", "fire")
    assert late["when"] < late["time"]
