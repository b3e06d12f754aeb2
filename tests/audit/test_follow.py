"""Following a query shows what is there and then each record that comes, once and in order, however many come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import pytest

from deia_audit.query.follow import follow, without_controls
from deia_audit.query.grammar import parse_query
from deia_audit.query.search import Page, Search


@pytest.mark.blocking  # searches on its own loop
async def test_each_record_is_shown_once_however_many_came_meanwhile(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    search = Search(trail.layout, lambda: trail.sealer.checkpoint, elsewhere=lambda *what: False)
    number = 0

    def add(count: int) -> None:
        nonlocal number
        for _ in range(count):
            trail.journal.append({"kind": "test", "action": "test.done", "number": number})
            trail.journal.append({"kind": "test", "action": "test.other", "number": number})
            number += 1
        assert trail.journal.drain(30)

    async def ask(text: str) -> Page:
        return search.run(parse_query(parse_qsl(text, keep_blank_values=True), most=10_000, now_ns=time.time_ns()))

    rounds = iter([0, 3, 2500, 1])

    async def pause() -> None:
        add(next(rounds))

    add(1500)
    shown: list[int] = []
    try:
        async for row in follow(ask, "action=test.done&order=asc&limit=7", 5, pause):
            shown.append(json.loads(row.line)["number"])
            if shown[-1] == 1500 + 3 + 2500:
                break
    finally:
        search.close()
    assert shown == list(range(1495, 1500 + 3 + 2500 + 1))


def test_a_followed_filter_keeps_its_fields_only() -> None:
    assert without_controls("actor=a b&-op=read&order=asc&limit=3&q=x") == "actor=a+b&-op=read&q=x"
