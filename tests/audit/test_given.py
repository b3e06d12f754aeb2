"""`record` never raises, whatever it is given: what is wrong is kept as text, and every verb reads the record."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from deia_audit import AuditLogger, audited, auditing, record
from deia_audit.exporting import export
from deia_audit.layout import Layout
from deia_audit.operation_types import ExportInput
from deia_audit.query.search import Search
from deia_audit.service import UNKEPT
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening import Actor, current
from deia_hardening.runtime import runtime
from deia_hardening.testing import running

from .searching import all_rows


class Untold:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
ODD = [
    None, 7, 1 << 80, float("nan"), "x", "\ud800", "\x1b[31m", b"bytes", {1, 2}, (1, 2), ("a", "b", "c"), {1: 2},
    {(1, 2): 3}, Untold(), object(), LOOP, DEEP, datetime.timedelta(1), decimal.Decimal("1.5"), Path("/x"),
    "y" * 20_000, lambda: 1,
]  # fmt: skip
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    **{name: lambda odd, name=name: {name: odd} for name in (
        "target", "reason", "change", "outcome", "kind", "level", "ticket", "policy", "tool", "model", "actor",
        "subject", "anything")},
    "target's id": lambda odd: {"target": ("bot", odd)},
    "a change": lambda odd: {"change": {"state": odd}},
    "a changed value": lambda odd: {"change": {"state": (odd, odd)}},
    "a tool's name": lambda odd: {"tool": {"name": odd}},
    "private": lambda odd: {"private": odd, "subject": "alice"},
    "private's subject": lambda odd: {"private": "text", "subject": odd},
}  # fmt: skip


def test_record_takes_anything_and_every_verb_reads_it(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "home")

    def tell() -> None:
        for odd in ODD:
            record(odd)  # type: ignore[arg-type]
            for make in PLACES.values():
                record("bot.moved", **make(odd))

    async def work() -> None:
        async with running(Starlette(), {"home": str(tmp_path / "home"), "audit": {}}):
            await runtime().blocking(tell)  # a private text may read a key

    asyncio.run(work())
    assert verify(layout).verdict is Verdict.OK_LOCAL_ONLY
    for kind in ("jsonl", "csv", "ocsf", "tlog"):
        assert export(layout, ExportInput(to=str(tmp_path / kind), format=kind)).records > len(ODD) * len(PLACES)
    search = Search(layout, lambda: None)
    moved = [json.loads(row.line) for row in all_rows(search, "action=bot.moved&limit=1000")]
    search.close()
    assert len(moved) == len(ODD) * len(PLACES)
    assert all(isinstance(one["outcome"], str) and isinstance(one["kind"], str) for one in moved)
    assert all(set(one["target"]) == {"type", "id"} for one in moved if "target" in one)


def test_a_slip_in_what_is_told_does_not_take_the_call_with_it(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]]
) -> None:
    @audited("bot.stop", target=lambda bot_id: ("bot", bot_id["id"]))
    def stop(bot_id: str) -> str:
        return f"stopped {bot_id}"

    async def work() -> None:
        async with running(Starlette(), {"home": str(tmp_path), "audit": {}}):
            assert stop("b7") == "stopped b7"
            with auditing("bot.start", target="b7"):  # type: ignore[arg-type]
                pass
            with contextlib.suppress(KeyError), auditing("bot.fail", target=7):  # type: ignore[arg-type]
                raise KeyError("the app's own")

    asyncio.run(work())
    told = {one["action"]: one for one in read_trail(tmp_path) if one.get("kind") == "bot"}
    assert told["bot.stop"]["target"] == {"type": "unknown", "id": "(TypeError)"}
    assert told["bot.start"]["target"] == {"type": "unknown", "id": "b7"}
    assert (told["bot.fail"]["outcome"], told["bot.fail"]["detail"]["error"]) == ("failure", "KeyError")


@pytest.mark.parametrize("damage", ["short", "folder"])
def test_a_key_that_can_not_be_read_costs_the_private_text_and_the_name(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]], damage: str
) -> None:
    def tell(logger: AuditLogger) -> None:
        key = tmp_path / "keys" / "audit" / "subjects" / f"{logger.subjects.handle('alice')}.key"
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_bytes(b"short") if damage == "short" else key.mkdir()
        logger.record("chat.said", private="what alice wrote", subject="alice")
        logger.record("chat.left", actor=Actor("user", "alice", "test"))

    async def work() -> None:
        settings = {"home": str(tmp_path), "audit": {"actor_ids": "encrypted"}}
        async with running(Starlette(), settings) as live:
            await runtime().blocking(tell, current(AuditLogger, app=live.app))

    asyncio.run(work())
    told = {one["action"]: one for one in read_trail(tmp_path) if one.get("action", "").startswith("chat.")}
    assert told["chat.said"]["private"] == UNKEPT
    assert (told["chat.left"]["actor"], told["chat.left"]["event"]) == ({"type": "user"}, "unreadable")
    assert b"alice" not in (tmp_path / "logs" / "audit-trail.jsonl").read_bytes()
