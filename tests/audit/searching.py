"""What the tests of queries and of their indexes share: queries as text, all their rows, whether an index is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deia_audit.query.grammar import parse_query
from deia_audit.query.search import Search
from deia_audit.query.soundness import State, index_key, state

NOW = 1_800_000_000_000_000_000


def parse(text: str) -> Any:
    pairs = [part.partition("=")[::2] for part in text.split("&") if part]
    return parse_query(pairs, most=1000, now_ns=NOW)


def all_rows(search: Search, text: str) -> list[Any]:
    rows: list[Any] = []
    cursor = ""
    while True:
        page = search.run(parse(text + cursor))
        rows += page.rows
        if not page.next:
            return rows
        cursor = f"&cursor={page.next}"


def actor(record: dict[str, Any]) -> str:
    return str(record.get("actor", {}).get("id", ""))


def sound(trail: Any, path: Path) -> bool:
    return state(path, index_key(trail.layout.keys)) is State.SOUND
